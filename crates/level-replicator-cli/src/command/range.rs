//! `range`: keys and values, in order.

use std::io::{BufWriter, Write};

use super::Failure;
use crate::args::RangeArgs;
use crate::door::{Door, Span};
use crate::json;

pub(crate) fn run(args: &RangeArgs) -> Result<(), Failure> {
    let bytes = |text: &Option<String>| text.as_ref().map(|text| text.clone().into_bytes());
    let (start, end) = match &args.prefix {
        Some(prefix) => (
            Some(prefix.clone().into_bytes()),
            after_prefix(prefix.as_bytes()),
        ),
        None => (bytes(&args.start), bytes(&args.end)),
    };
    let span = Span {
        start: start.filter(|start| !start.is_empty()),
        end,
        is_reversed: args.reverse,
        limit: args.limit,
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    Door::open(&args.door)?.for_each(&span, |key, value| {
        if args.json {
            writeln!(out, "{}", json::entry(key, value))?;
        } else {
            out.write_all(key)?;
            out.write_all(b"\t")?;
            out.write_all(value)?;
            out.write_all(b"\n")?;
        }
        Ok(true)
    })?;
    Ok(out.flush()?)
}

/// The first key behind all that begin with a prefix, if there is any.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

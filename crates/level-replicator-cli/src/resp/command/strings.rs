//! Commands on values.
//!
//! The rule: a handler may run again, because a transaction that met another writer does, so it builds its reply anew.

use std::time::SystemTime;

use crate::resp::command::expiry::{self, Unit};
use crate::resp::edit::{Edit, Shown, Source};
use crate::resp::refusal::{Refusal, SYNTAX};
use crate::resp::reply::ReplyWriter;
use crate::resp::request::Request;

type Answer = Result<(), Refusal>;

pub(crate) fn get(source: &mut dyn Source, request: &Request, out: &mut ReplyWriter) -> Answer {
    out.bulk_or_null(source.get(request.argument(1))?);
    Ok(())
}

pub(crate) fn mget(source: &mut dyn Source, request: &Request, out: &mut ReplyWriter) -> Answer {
    let keys = request.arguments_from(1);
    out.array(keys.len());
    for key in keys {
        out.bulk_or_null(source.get(key)?);
    }
    Ok(())
}

pub(crate) fn strlen(source: &mut dyn Source, request: &Request, out: &mut ReplyWriter) -> Answer {
    let value = source.get(request.argument(1))?;
    out.count(value.map_or(0, |value| value.len()));
    Ok(())
}

/// What `SET` was asked for beside the key and the value.
#[derive(Debug, Default)]
struct SetOptions {
    only: Option<Only>,
    get: bool,
    expires: Expires,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Only {
    IfAbsent,
    IfPresent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Expires {
    #[default]
    Never,
    AsBefore,
    At(SystemTime),
}

impl SetOptions {
    fn parse(request: &Request) -> Result<SetOptions, Refusal> {
        let mut options = SetOptions::default();
        let mut words = request.arguments_from(3);
        while let Some(word) = words.next() {
            let word = word.to_ascii_uppercase();
            match &word[..] {
                b"NX" if options.only.is_none() => options.only = Some(Only::IfAbsent),
                b"XX" if options.only.is_none() => options.only = Some(Only::IfPresent),
                b"GET" => options.get = true,
                b"KEEPTTL" if options.expires == Expires::Never => {
                    options.expires = Expires::AsBefore;
                }
                word => {
                    let unit = Unit::of_option(word).ok_or(SYNTAX)?;
                    let number = words.next().ok_or(SYNTAX)?;
                    if options.expires != Expires::Never {
                        return Err(SYNTAX);
                    }
                    options.expires = Expires::At(expiry::moment("set", unit, number)?);
                }
            }
        }
        Ok(options)
    }
}

pub(crate) fn set(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let (key, value) = (request.argument(1), request.argument(2));
    if request.len() == 3 {
        edit.put(key, value)?;
        out.simple("OK");
        return Ok(());
    }
    let options = SetOptions::parse(request)?;
    let needs_before =
        options.get || options.only.is_some() || options.expires == Expires::AsBefore;
    let before = if needs_before { edit.entry(key)? } else { None };

    let goes_on = match options.only {
        None => true,
        Some(Only::IfAbsent) => before.is_none(),
        Some(Only::IfPresent) => before.is_some(),
    };
    if goes_on {
        let expires_at = match options.expires {
            Expires::Never => None,
            Expires::At(at) => Some(at),
            Expires::AsBefore => before.as_ref().and_then(|before| before.expires_at),
        };
        edit.put_until(key, value, expires_at)?;
    }
    match (options.get, goes_on) {
        (true, _) => answer_value(edit, before, out)?,
        (false, true) => out.simple("OK"),
        (false, false) => out.null(),
    }
    Ok(())
}

pub(crate) fn setnx(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let is_absent = edit.get(request.argument(1))?.is_none();
    if is_absent {
        edit.put(request.argument(1), request.argument(2))?;
    }
    out.integer(i64::from(is_absent));
    Ok(())
}

pub(crate) fn setex(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let at = expiry::moment("setex", Unit::Seconds, request.argument(2))?;
    edit.put_until(request.argument(1), request.argument(3), Some(at))?;
    out.simple("OK");
    Ok(())
}

pub(crate) fn psetex(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let at = expiry::moment("psetex", Unit::Millis, request.argument(2))?;
    edit.put_until(request.argument(1), request.argument(3), Some(at))?;
    out.simple("OK");
    Ok(())
}

pub(crate) fn getset(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let before = edit.entry(request.argument(1))?;
    edit.put(request.argument(1), request.argument(2))?;
    answer_value(edit, before, out)
}

pub(crate) fn getdel(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let before = edit.entry(request.argument(1))?;
    if before.is_some() {
        edit.delete(request.argument(1))?;
    }
    answer_value(edit, before, out)
}

pub(crate) fn getex(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let option = request.argument(2).to_ascii_uppercase();
    // `None`: it stays as it is.
    let expires = match (request.len(), &option[..]) {
        (2, _) => None,
        (3, b"PERSIST") => Some(None),
        (4, option) => {
            let unit = Unit::of_option(option).ok_or(SYNTAX)?;
            Some(Some(expiry::moment("getex", unit, request.argument(3))?))
        }
        _ => return Err(SYNTAX),
    };
    let before = edit.entry(request.argument(1))?;
    if let (Some(before), Some(expires_at)) = (&before, expires)
        && before.expires_at != expires_at
    {
        edit.put_until(request.argument(1), &before.value, expires_at)?;
    }
    answer_value(edit, before, out)
}

/// Answers a value, and counts it: all answers of a transaction are in memory at once.
fn answer_value(edit: &mut Edit<'_>, shown: Option<Shown>, out: &mut ReplyWriter) -> Answer {
    edit.count(shown.as_ref().map_or(0, |shown| shown.value.len()))?;
    out.bulk_or_null(shown.map(|shown| shown.value));
    Ok(())
}

pub(crate) fn mset(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    if request.len().is_multiple_of(2) {
        return Err(Refusal::new(
            "ERR wrong number of arguments for 'mset' command",
        ));
    }
    // A pair that cannot be written must leave none of the others.
    for value in request.arguments_from(2).step_by(2) {
        edit.check_value(value)?;
    }
    for at in (1..request.len()).step_by(2) {
        edit.put(request.argument(at), request.argument(at + 1))?;
    }
    out.simple("OK");
    Ok(())
}

pub(crate) fn append(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let key = request.argument(1);
    let before = edit.entry(key)?;
    let expires_at = before.as_ref().and_then(|before| before.expires_at);
    let mut value = before.map_or_else(Vec::new, |before| before.value.to_vec());
    value.extend_from_slice(request.argument(2));
    edit.put_until(key, &value, expires_at)?;
    out.count(value.len());
    Ok(())
}

pub(crate) fn no_counters(_: &mut Edit<'_>, _: &Request, _: &mut ReplyWriter) -> Answer {
    Err(Refusal::new(
        "ERR counters need a merge type: concurrent increments would be lost",
    ))
}

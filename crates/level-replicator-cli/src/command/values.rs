//! `get`, `put`, `delete`, `siblings`, `resolve`: one key.

use std::io::Write;
use std::time::Duration;

use serde_json::{Map, Value};

use super::Failure;
use crate::args::{JsonKeyArgs, KeyArgs, PutArgs, ResolveArgs};
use crate::door::Door;
use crate::json;

pub(crate) fn get(args: &KeyArgs) -> Result<(), Failure> {
    let value = Door::open(&args.door)?.get(args.key.as_bytes())?;
    let value = value.ok_or_else(|| missing(&args.key))?;
    print_line(&value)
}

pub(crate) fn put(args: &PutArgs) -> Result<(), Failure> {
    let expires_in = args.expires_in.map(Duration::from_secs);
    let mut door = Door::open(&args.door)?;
    door.put(args.key.as_bytes(), args.value.as_bytes(), expires_in)
}

pub(crate) fn delete(args: &KeyArgs) -> Result<(), Failure> {
    let was_there = Door::open(&args.door)?.delete(args.key.as_bytes())?;
    if was_there {
        Ok(())
    } else {
        Err(missing(&args.key))
    }
}

pub(crate) fn siblings(args: &JsonKeyArgs) -> Result<(), Failure> {
    let siblings = Door::open(&args.door)?.siblings(args.key.as_bytes())?;
    if siblings.is_empty() {
        return Err(missing(&args.key));
    }
    if args.json {
        let values = siblings.iter().map(|value| {
            let mut object = Map::new();
            json::put(&mut object, "value", value);
            Value::Object(object)
        });
        let values = Value::Array(values.collect());
        return print_line(values.to_string().as_bytes());
    }
    siblings.iter().try_for_each(|value| print_line(value))
}

pub(crate) fn resolve(args: &ResolveArgs) -> Result<(), Failure> {
    Door::open(&args.door)?.resolve(args.key.as_bytes(), args.value.as_bytes())
}

/// Prints bytes as they are, and a newline.
pub(super) fn print_line(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.write_all(b"\n")?;
    Ok(stdout.flush()?)
}

fn missing(key: &str) -> Failure {
    format!("there is no key '{}'", key.escape_debug()).into()
}

//! The two ways to a replica: a daemon that runs, or a directory that none holds.

use std::time::Duration;

use level_replicator::{Address, Db, Options, PutOptions};

use crate::args::DoorArgs;
use crate::command::{Failure, UsageError};
use crate::resp::Password;
use crate::resp_client::{Answer, RespClient};
use crate::settings::{PASSWORD_VARIABLE, parse_address, variable};

const AT_DEFAULT: &str = "127.0.0.1:6379";

/// Keys and values that are asked of a daemon at once, at most.
const PAGE: usize = 1_000;

/// Bytes of them that are held at once, but for a single larger entry. A page is not much more than this,
/// so that the daemon need not wait for a slow reader of what is printed.
const PAGE_BYTES: usize = 4 << 20;

pub(crate) enum Door {
    Daemon(Box<RespClient>),
    Directory(Db),
}

/// Which keys are wanted: `start` inclusive, `end` exclusive, `None` for open ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Span {
    pub(crate) start: Option<Vec<u8>>,
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) is_reversed: bool,
    pub(crate) limit: Option<usize>,
}

impl Door {
    pub(crate) fn open(args: &DoorArgs) -> Result<Door, Failure> {
        if let Some(path) = &args.path {
            if !path.join("FORMAT").exists() {
                let shown = path.display();
                return Err(format!("{shown} holds no replica: 'serve --path' makes one").into());
            }
            return Ok(Door::Directory(Options::new().open(path)?));
        }
        let at = args.at.as_deref().unwrap_or(AT_DEFAULT);
        let at: Address = parse_address("--at", at).map_err(UsageError)?;
        let password = match &args.password_file {
            Some(path) => Some(Password::from_file(path)?),
            None => variable(PASSWORD_VARIABLE)
                .map_err(UsageError)?
                .and_then(Password::new),
        };
        let client = RespClient::connect(&at, password.as_ref().map(Password::bytes))?;
        Ok(Door::Daemon(Box::new(client)))
    }

    /// A daemon, for what a directory alone cannot do.
    pub(crate) fn daemon(args: &DoorArgs, what: &str) -> Result<RespClient, Failure> {
        match Door::open(args)? {
            Door::Daemon(client) => Ok(*client),
            Door::Directory(_) => {
                let text = format!("'{what}' needs a running daemon: give --at instead of --path");
                Err(UsageError(text).into())
            }
        }
    }

    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        match self {
            Door::Daemon(client) => optional(client.call(&[b"GET", key])?),
            Door::Directory(db) => Ok(db.get(key)?.map(|value| value.to_vec())),
        }
    }

    pub(crate) fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_in: Option<Duration>,
    ) -> Result<(), Failure> {
        match (self, expires_in) {
            (Door::Daemon(client), None) => client.call(&[b"SET", key, value]).map(drop)?,
            (Door::Daemon(client), Some(after)) => {
                let ms = after.as_millis().to_string();
                client
                    .call(&[b"SET", key, value, b"PX", ms.as_bytes()])
                    .map(drop)?;
            }
            (Door::Directory(db), None) => db.put(key, value).map(drop)?,
            (Door::Directory(db), Some(after)) => {
                db.put_with(key, value, &PutOptions::new().expires_in(after))
                    .map(drop)?;
            }
        }
        Ok(())
    }

    /// Answers whether there was something to delete.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<bool, Failure> {
        match self {
            Door::Daemon(client) => Ok(client.call(&[b"DEL", key])? == Answer::Integer(1)),
            Door::Directory(db) => Ok(db.delete(key)?.is_some()),
        }
    }

    pub(crate) fn siblings(&mut self, key: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        match self {
            Door::Daemon(client) => bulks(client.call(&[b"LR.SIBLINGS", key])?),
            Door::Directory(db) => {
                let siblings = db.siblings(key)?.into_iter();
                Ok(siblings.map(|sibling| sibling.value.to_vec()).collect())
            }
        }
    }

    pub(crate) fn resolve(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        match self {
            Door::Daemon(client) => client.call(&[b"LR.RESOLVE", key, value]).map(drop)?,
            Door::Directory(db) => db.resolve(key, value).map(drop)?,
        }
        Ok(())
    }

    pub(crate) fn conflicts(&mut self) -> Result<Vec<Vec<u8>>, Failure> {
        match self {
            Door::Daemon(client) => bulks(client.call(&[b"LR.CONFLICTS"])?),
            Door::Directory(db) => {
                let keys = db.conflicts().map(|conflict| Ok(conflict?.0.to_vec()));
                keys.collect()
            }
        }
    }

    /// Writes keys and values: all at once.
    pub(crate) fn put_all(&mut self, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Failure> {
        match self {
            Door::Daemon(client) => {
                let mut words: Vec<&[u8]> = vec![b"MSET"];
                words.extend(entries.iter().flat_map(|(key, value)| [&key[..], value]));
                client.call(&words)?;
            }
            Door::Directory(db) => {
                let mut batch = db.batch();
                for (key, value) in entries {
                    batch.put(key, value);
                }
                batch.commit()?;
            }
        }
        Ok(())
    }

    /// How many keys there are, for a progress bar.
    pub(crate) fn count(&mut self) -> Result<Option<u64>, Failure> {
        match self {
            Door::Daemon(client) => match client.call(&[b"DBSIZE"])? {
                Answer::Integer(count) => Ok(u64::try_from(count).ok()),
                _ => Ok(None),
            },
            Door::Directory(db) => Ok(db.status().keys),
        }
    }

    /// Gives keys and values to `each`, in order, until it answers false. A daemon is asked for a page at a
    /// time, so what is written meanwhile may show in later pages.
    pub(crate) fn for_each(
        &mut self,
        span: &Span,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        match self {
            Door::Daemon(client) => each_of_daemon(client, span.clone(), each),
            Door::Directory(db) => {
                use std::ops::Bound;
                let start = span.start.clone().map_or(Bound::Unbounded, Bound::Included);
                let end = span.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
                let range = db.range::<Vec<u8>>((start, end));
                let entries: Box<dyn Iterator<Item = _>> = if span.is_reversed {
                    Box::new(range.rev())
                } else {
                    Box::new(range)
                };
                for entry in entries.take(span.limit.unwrap_or(usize::MAX)) {
                    let (key, value) = entry?;
                    if !each(&key, &value)? {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

fn each_of_daemon(
    client: &mut RespClient,
    mut span: Span,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut left = span.limit.unwrap_or(usize::MAX);
    let mut page_next = PAGE;
    while left > 0 {
        let page = left.min(page_next);
        let (start, end) = (
            end_of_range(span.start.as_deref(), b"-"),
            end_of_range(span.end.as_deref(), b"+"),
        );
        let count = page.to_string();
        let mut words: Vec<&[u8]> = vec![b"LR.RANGE", &start, &end, b"LIMIT", count.as_bytes()];
        if span.is_reversed {
            words.push(b"REV");
        }
        client.send(&words)?;
        let count = client.array_len()? / 2;
        let (mut got, mut last) = (0, Vec::new());
        let (mut waiting, mut bytes, mut page_bytes) = (Vec::new(), 0, 0);
        while got < count {
            let (key, value) = (bulk(client.receive()?)?, bulk(client.receive()?)?);
            bytes += key.len() + value.len();
            last.clone_from(&key);
            waiting.push((key, value));
            got += 1;
            if bytes < PAGE_BYTES && got < count {
                continue;
            }
            for (key, value) in waiting.drain(..) {
                if !each(&key, &value)? {
                    return Ok(());
                }
            }
            page_bytes += std::mem::take(&mut bytes);
        }
        if got < page {
            return Ok(());
        }
        left -= got;
        page_next = (PAGE_BYTES / (page_bytes / got).max(1)).clamp(1, PAGE);
        if span.is_reversed {
            span.end = Some(last);
        } else {
            // The first key behind it.
            span.start = Some([&last[..], b"\0"].concat());
        }
    }
    Ok(())
}

/// An end of LR.RANGE: what would mean something else there is quoted by a bracket.
fn end_of_range(key: Option<&[u8]>, open: &[u8]) -> Vec<u8> {
    match key {
        None => open.to_vec(),
        Some(key) if key == b"-" || key == b"+" || key.starts_with(b"[") => [b"[", key].concat(),
        Some(key) => key.to_vec(),
    }
}

fn optional(answer: Answer) -> Result<Option<Vec<u8>>, Failure> {
    match answer {
        Answer::Bulk(bytes) => Ok(Some(bytes)),
        Answer::Null => Ok(None),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn bulks(answer: Answer) -> Result<Vec<Vec<u8>>, Failure> {
    let Answer::Array(answers) = answer else {
        return Err(unexpected(&answer));
    };
    answers.into_iter().map(bulk).collect()
}

fn bulk(answer: Answer) -> Result<Vec<u8>, Failure> {
    match answer {
        Answer::Bulk(bytes) => Ok(bytes),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn text(answer: Answer) -> Result<String, Failure> {
    match answer {
        Answer::Bulk(bytes) => Ok(String::from_utf8(bytes)?),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &Answer) -> Failure {
    let kind = match answer {
        Answer::Simple(_) => "a word",
        Answer::Integer(_) => "a number",
        Answer::Bulk(_) => "a value",
        Answer::Null => "nothing",
        Answer::Array(_) => "a list",
    };
    format!("the daemon answered {kind} where something else was expected: is it level-replicator?")
        .into()
}

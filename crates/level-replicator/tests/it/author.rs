//! Authors: each writes its own keys plainly, and keys shared with others in transactions that say
//! what they replace. Before each write an author tells what it is about to do, and after it that
//! it is done; the value names its write.
//!
//! The rule: an author numbers its writes, and its later write of a key replaces its earlier ones.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use level_replicator::{Db, Dot, WriterId};

/// How many keys there are of a kind that is written again and again.
const KEYS: u64 = 8;

/// More than fits into the one mebibyte that a peer applies at once.
const BULK_KEYS: u64 = 60;
const BULK_VALUE_LEN: usize = 20_000;

/// How rarely it is deleted again, which keeps a replica from reading it for ever.
const BULK_LIFETIME: u32 = 100;

/// The parts of a batch whose keys differ in nothing else.
const PARTS: [&str; 3] = ["left", "middle", "right"];

/// The numbers of one write of each of some authors.
pub(crate) type Numbers = BTreeMap<char, u64>;

/// A write that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) author: char,
    pub(crate) number: u64,
    pub(crate) is_put: bool,
    pub(crate) keys: Vec<String>,
    /// The writes of others that are read, and replaced.
    pub(crate) replaces: Numbers,
}

/// What an author tells of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    Begun(Intent),
    /// The call returned; no dot means that there was nothing to delete.
    Acknowledged {
        author: char,
        number: u64,
        dot: Option<Dot>,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Begun(intent) => {
                let Intent { author, number, .. } = intent;
                let kind = if intent.is_put { "put" } else { "delete" };
                let replaces = (intent.replaces.iter())
                    .map(|(author, number)| format!("{author}{number}"))
                    .collect::<Vec<_>>();
                let (keys, replaces) = (intent.keys.join(","), replaces.join(","));
                write!(f, "begun {author} {number} {kind} {keys} {replaces}")
            }
            Note::Acknowledged {
                author,
                number,
                dot,
            } => {
                write!(f, "acknowledged {author} {number} ")?;
                match dot {
                    Some(dot) => write!(f, "{dot}"),
                    None => write!(f, "nothing"),
                }
            }
        }
    }
}

impl Note {
    /// Reads a note back; `None` for another line.
    pub(crate) fn parse(line: &str) -> Option<Note> {
        let words: Vec<&str> = line.split(' ').collect();
        let note = match words[..] {
            ["begun", author, number, kind, keys, replaces] => Note::Begun(Intent {
                author: author.parse().ok()?,
                number: number.parse().ok()?,
                is_put: kind == "put",
                keys: keys.split(',').map(str::to_owned).collect(),
                replaces: replaces
                    .split(',')
                    .filter(|word| !word.is_empty())
                    .map(parse_name)
                    .collect::<Option<_>>()?,
            }),
            ["acknowledged", author, number, dot] => Note::Acknowledged {
                author: author.parse().ok()?,
                number: number.parse().ok()?,
                dot: parse_dot(dot),
            },
            _ => return None,
        };
        Some(note)
    }
}

fn parse_name(word: &str) -> Option<(char, u64)> {
    let author = word.chars().next()?;
    Some((author, word[author.len_utf8()..].parse().ok()?))
}

fn parse_dot(word: &str) -> Option<Dot> {
    let (writer, seq) = word.split_once(':')?;
    Some(Dot {
        writer: WriterId(u64::from_str_radix(writer, 16).ok()?),
        seq: seq.parse().ok()?,
    })
}

/// What an author writes under a key.
pub(crate) fn value_of(key: &str, author: char, number: u64) -> Vec<u8> {
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| crate::child::noise(456));
    // Each key has other noise, or all would be sent as nearly nothing.
    static BULK_NOISE: LazyLock<Vec<u8>> =
        LazyLock::new(|| crate::child::noise(BULK_KEYS as usize * BULK_VALUE_LEN));
    let mut value = format!("{author}{number} ").into_bytes();
    value.extend_from_slice(match bulk_place(key) {
        Some(place) => &BULK_NOISE[place * BULK_VALUE_LEN..][..BULK_VALUE_LEN],
        None => &NOISE[number as usize % 256..][..number as usize % 200],
    });
    value
}

/// Whose write a value is, and which.
pub(crate) fn name_of(value: &[u8]) -> Option<(char, u64)> {
    let end = value.iter().position(|&byte| byte == b' ')?;
    parse_name(std::str::from_utf8(&value[..end]).ok()?)
}

/// Keys that are only written together have the same answer here; `None` for other keys.
pub(crate) fn batch_of(key: &str) -> Option<&str> {
    if bulk_place(key).is_some() || key.contains("/batch/") {
        return key.rsplit_once('/').map(|(batch, _)| batch);
    }
    None
}

fn latest(names: impl Iterator<Item = (char, u64)>) -> Numbers {
    names.fold(Numbers::new(), |mut latest, (author, number)| {
        let known = latest.entry(author).or_insert(0);
        *known = number.max(*known);
        latest
    })
}

/// Which of the bulk's keys a key is, if it is one.
fn bulk_place(key: &str) -> Option<usize> {
    let (_, place) = key.split_once("/bulk/")?;
    place.parse().ok()
}

fn bulk_keys(author: char) -> Vec<String> {
    let keys = 0..BULK_KEYS;
    keys.map(|key| format!("{author}/bulk/{key}")).collect()
}

/// One who writes to a database.
pub(crate) struct Author<T> {
    name: char,
    db: Db,
    number: u64,
    chance: fastrand::Rng,
    has_bulk: bool,
    tell: T,
}

impl<T: FnMut(Note)> Author<T> {
    pub(crate) fn new(name: char, db: Db, first: u64, seed: u64, tell: T) -> Author<T> {
        Author {
            name,
            db,
            number: first,
            chance: fastrand::Rng::with_seed(seed),
            has_bulk: false,
            tell,
        }
    }

    /// Writes one thing or another.
    pub(crate) fn write_something(&mut self) {
        if self.has_bulk && self.chance.u32(..BULK_LIFETIME) == 0 {
            self.has_bulk = false;
            return self.write_batch(&bulk_keys(self.name), false);
        }
        let (name, some) = (self.name, self.chance.u64(..KEYS));
        let own = format!("{name}/own/{some}");
        let batch = PARTS.map(|part| format!("{name}/batch/{some}/{part}"));
        match self.chance.u32(..16) {
            0 => self.put(&format!("{name}/growing/{:06}", self.number)),
            1..=4 => self.put(&own),
            5 => self.delete(&own),
            6..=8 => self.write_batch(&batch, true),
            9 => self.write_batch(&batch, false),
            10..=14 => self.write_shared(),
            _ => self.replace(&format!("shared/{some}"), false),
        }
    }

    /// Writes a key that others write too.
    pub(crate) fn write_shared(&mut self) {
        let some = self.chance.u64(..KEYS);
        self.replace(&format!("shared/{some}"), true);
    }

    /// Writes, in one batch, more than a peer applies at once.
    pub(crate) fn write_bulk(&mut self) {
        self.has_bulk = true;
        self.write_batch(&bulk_keys(self.name), true);
    }

    fn put(&mut self, key: &str) {
        let number = self.begin(true, &[key.to_owned()]);
        let dot = self.db.put(key, value_of(key, self.name, number));
        self.acknowledge(number, Some(dot.expect("a put")));
    }

    fn delete(&mut self, key: &str) {
        let number = self.begin(false, &[key.to_owned()]);
        let dot = self.db.delete(key);
        self.acknowledge(number, dot.expect("a delete"));
    }

    fn write_batch(&mut self, keys: &[String], is_put: bool) {
        let number = self.begin(is_put, keys);
        let mut batch = self.db.batch();
        for key in keys {
            match is_put {
                true => batch.put(key, value_of(key, self.name, number)),
                false => batch.delete(key),
            };
        }
        let dot = batch.commit();
        self.acknowledge(number, dot.expect("a batch"));
    }

    /// Writes a shared key, and tells what that replaces.
    fn replace(&mut self, key: &str, is_put: bool) {
        let (author, number) = (self.name, self.next_number());
        let tell = RefCell::new(&mut self.tell);
        let db = &self.db;
        let dot = db.update(key, |_| {
            // Written only if the key has not changed meanwhile, so these are what is replaced.
            let siblings = db.siblings(key).expect("the key can be read");
            let names = siblings.iter().filter_map(|known| name_of(&known.value));
            (tell.borrow_mut())(Note::Begun(Intent {
                author,
                number,
                is_put,
                keys: vec![key.to_owned()],
                replaces: latest(names),
            }));
            is_put.then(|| value_of(key, author, number))
        });
        self.acknowledge(number, dot.expect("a transaction"));
    }

    fn begin(&mut self, is_put: bool, keys: &[String]) -> u64 {
        let number = self.next_number();
        (self.tell)(Note::Begun(Intent {
            author: self.name,
            number,
            is_put,
            keys: keys.to_vec(),
            replaces: Numbers::new(),
        }));
        number
    }

    fn acknowledge(&mut self, number: u64, dot: Option<Dot>) {
        (self.tell)(Note::Acknowledged {
            author: self.name,
            number,
            dot,
        });
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number - 1
    }
}

//! What authors said they wrote, and so what may and what must be found under each key.
//!
//! It knows nothing of dots and clocks: a write is replaced by its author's later ones of the key,
//! and by those of others that had read it. A write that was begun and not acknowledged, because
//! its author was killed, took place or did not; both are allowed until something shows which.

use std::collections::{BTreeMap, BTreeSet};

use level_replicator::Dot;

use crate::author::{Intent, Note, Numbers, batch_of};

/// The writes whose values are found under a key: author and number.
pub(crate) type Found = BTreeSet<(char, u64)>;

/// All keys, with what was written to them.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    keys: BTreeMap<String, History>,
    /// The write of each author that was begun last.
    begun: BTreeMap<char, Intent>,
    /// Acknowledged writes.
    pub(crate) acknowledged: u64,
    /// Writes that replaced two or more concurrent values.
    pub(crate) conflicts: u64,
}

/// What was written to one key.
#[derive(Debug, Default, Clone)]
pub(crate) struct History {
    /// The last acknowledged write of each author.
    last: BTreeMap<char, Last>,
    /// Up to where the writes of each author were replaced.
    replaced: Numbers,
    /// Writes that may or may not have taken place.
    open: Vec<Intent>,
}

/// An acknowledged write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Last {
    pub(crate) number: u64,
    pub(crate) is_put: bool,
    /// Its name, if the write was of this key alone.
    pub(crate) dot: Option<Dot>,
}

impl Histories {
    /// Notes what an author says.
    pub(crate) fn note(&mut self, note: Note) {
        match note {
            Note::Begun(intent) => {
                for key in &intent.keys {
                    let history = self.keys.entry(key.clone()).or_default();
                    history.begin(intent.clone());
                }
                self.begun.insert(intent.author, intent);
            }
            Note::Acknowledged {
                author,
                number,
                dot,
            } => {
                let intent = self.begun.remove(&author);
                let intent = intent.expect("a write is begun before it is acknowledged");
                assert_eq!(intent.number, number, "the write that was begun");
                self.acknowledged += 1;
                self.conflicts += u64::from(intent.replaces.len() > 1);
                let dot = dot.filter(|_| intent.keys.len() == 1);
                for key in &intent.keys {
                    let history = self.keys.get_mut(key).expect("the write was begun");
                    history.acknowledge(&intent, dot);
                }
            }
        }
    }

    /// The number of the write that an author may begin with after it was killed.
    pub(crate) fn next_number(&self, author: char) -> u64 {
        let histories = self.keys.values();
        histories
            .map(|history| history.last_number(author) + 1)
            .max()
            .unwrap_or(1)
    }

    /// Checks that what one author was acknowledged is found, or was replaced; and settles, for an
    /// author that was killed, whether its last write took place.
    pub(crate) fn check_author(&mut self, found: &BTreeMap<String, Found>, author: char) {
        let nothing = Found::new();
        for (key, history) in &mut self.keys {
            let found = found.get(key).unwrap_or(&nothing);
            history.settle(author, found);
            history.check_author(key, author, found);
        }
    }

    /// Checks everything that is found on a replica that knows all writes.
    pub(crate) fn check_all(&mut self, found: &BTreeMap<String, Found>) {
        for key in found.keys() {
            assert!(self.keys.contains_key(key), "nobody wrote to {key}");
        }
        let authors: BTreeSet<char> = (self.keys.values())
            .flat_map(|history| history.last.keys().copied())
            .collect();
        for author in authors {
            self.check_author(found, author);
        }
        for (key, found) in found {
            self.keys[key].check_replaced(key, found);
        }
    }

    /// The acknowledged writes of an author that were its last of a key.
    pub(crate) fn last_of(&self, author: char) -> impl Iterator<Item = (&String, Last)> + '_ {
        (self.keys.iter())
            .filter_map(move |(key, history)| Some((key, *history.last.get(&author)?)))
    }

    /// Checks that the batches of some authors are found whole or not at all.
    pub(crate) fn check_batches(&self, found: &BTreeMap<String, Found>, authors: &[char]) {
        let mut batches: BTreeMap<&str, (&str, Option<&Found>)> = BTreeMap::new();
        let written = self.keys.keys().filter(|key| key.starts_with(authors));
        for key in written {
            let Some(batch) = batch_of(key) else {
                continue;
            };
            let here = found.get(key);
            let (first, there) = *batches.entry(batch).or_insert((key, here));
            assert_eq!(here, there, "half a batch: {key} against {first}");
        }
    }
}

impl History {
    fn begin(&mut self, intent: Intent) {
        // A transaction that is tried again has read anew.
        let again = |open: &Intent| (open.author, open.number) == (intent.author, intent.number);
        self.open.retain(|open| !again(open));
        self.open.push(intent);
    }

    fn acknowledge(&mut self, intent: &Intent, dot: Option<Dot>) {
        let Intent { author, number, .. } = *intent;
        // What it replaced if it did take place still matters.
        self.open.retain(|open| {
            open.author != author || (open.number < number && !open.replaces.is_empty())
        });
        for (other, replaced) in replaced_by(intent) {
            let known = self.replaced.entry(other).or_insert(0);
            *known = replaced.max(*known);
        }
        let is_put = intent.is_put;
        self.last.insert(
            author,
            Last {
                number,
                is_put,
                dot,
            },
        );
    }

    fn last_number(&self, author: char) -> u64 {
        let last = self.last.get(&author).map_or(0, |last| last.number);
        let open = self.open.iter().filter(|open| open.author == author);
        open.map(|open| open.number).fold(last, u64::max)
    }

    /// Looks whether an open write of a killed author took place. If that cannot be seen it stays
    /// open.
    fn settle(&mut self, author: char, found: &Found) {
        let last = self.last.get(&author).copied();
        let last_number = last.map_or(0, |last| last.number);
        let is_last_there = found.contains(&(author, last_number));
        if is_last_there {
            self.open
                .retain(|open| open.author != author || open.number < last_number);
            return;
        }
        let is_alone = self.last.keys().all(|other| *other == author);
        let took_place = self.open.iter().find(|open| {
            let deleted = is_alone && !open.is_put && last.is_some_and(|last| last.is_put);
            open.author == author
                && open.number > last_number
                && (deleted || found.contains(&(author, open.number)))
        });
        if let Some(took_place) = took_place.cloned() {
            self.acknowledge(&took_place, None);
        }
    }

    fn check_author(&self, key: &str, author: char, found: &Found) {
        let replaced = |number: u64| {
            let surely = self.replaced.get(&author).is_some_and(|&up| up >= number);
            surely
                || self
                    .open
                    .iter()
                    .any(|open| is_replaced_by(author, number, open))
        };
        if let Some(last) = self.last.get(&author)
            && last.is_put
            && !replaced(last.number)
        {
            assert!(
                found.contains(&(author, last.number)),
                "{author}{} of {key} was acknowledged and is lost; found {found:?}, {self:?}",
                last.number
            );
        }
        for (_, number) in found.iter().filter(|(other, _)| *other == author) {
            assert!(
                self.may_be_found(author, *number),
                "{author}{number} of {key} was replaced or never written, and is there: {self:?}"
            );
        }
    }

    fn may_be_found(&self, author: char, number: u64) -> bool {
        let last = self.last.get(&author);
        let is_last = last.is_some_and(|last| last.is_put && last.number == number);
        let is_later = last.is_none_or(|last| last.number < number);
        let is = |open: &Intent| (open.author, open.number) == (author, number) && open.is_put;
        is_last || (is_later && self.open.iter().any(is))
    }

    fn check_replaced(&self, key: &str, found: &Found) {
        for (author, number) in found {
            assert!(
                self.replaced.get(author).is_none_or(|up| up < number),
                "{author}{number} of {key} was replaced and is there: {self:?}"
            );
        }
    }
}

/// The writes that a write replaces: those it read, and its author's earlier ones.
fn replaced_by(intent: &Intent) -> impl Iterator<Item = (char, u64)> + '_ {
    let own = (intent.author, intent.number - 1);
    (intent.replaces.iter())
        .map(|(&author, &number)| (author, number))
        .filter(move |(author, _)| *author != own.0)
        .chain([own])
}

fn is_replaced_by(author: char, number: u64, open: &Intent) -> bool {
    replaced_by(open).any(|(other, up)| other == author && up >= number)
}

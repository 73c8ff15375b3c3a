//! Values that are written again under a new name, because the old one does not do any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::edit::Edit;
use super::{
    ChangeKind, Changed, META_COLLIDED, META_LAST_WRITER, State, StateError, put_writer_set,
};
use crate::clock::{Known, Now, Stamp, WriterId};
use crate::known_rows::put_base;
use crate::log;
use crate::record::{Key, Record, Version};
use crate::storage::{Batch, Table};
use crate::writers::{Descriptor, Writers};

impl State {
    /// Writes again, under new dots, the values of a key that either we or a peer lacks, though both
    /// should hold the same. `name` names new writers. Answers what changed.
    ///
    /// Of two values under one key the second is written by a writer of its own without a parent: a
    /// writer's later write stands for its earlier ones.
    pub fn reissue_differing(
        &mut self,
        now: Now,
        key: &Key,
        theirs: &Record,
        name: &mut dyn FnMut() -> u64,
    ) -> Result<Option<Changed>, StateError> {
        let ours = self.record(key)?;
        let mine = ours.puts().filter(|put| !theirs.live.contains(put));
        let foreign = theirs.puts().filter(|put| !ours.live.contains(put));
        let again: Vec<Version> = mine.chain(foreign).cloned().collect();
        self.reissue(now, key, &again, name)
    }

    fn reissue(
        &mut self,
        now: Now,
        key: &Key,
        again: &[Version],
        name: &mut dyn FnMut() -> u64,
    ) -> Result<Option<Changed>, StateError> {
        for version in again {
            let is_apart = self.stands_for_siblings(&self.record(key)?, version);
            self.reissue_one(now, key, version, is_apart, name)?;
        }
        Ok((!again.is_empty()).then(|| Changed {
            key: key.clone(),
            conflict: again.len() >= 2,
            visible: true,
            kind: ChangeKind::Put,
        }))
    }

    /// Whether a new write of the current writer would stand for siblings of a version too.
    fn stands_for_siblings(&self, record: &Record, version: &Version) -> bool {
        let parent = self.parent.map(|parent| parent.writer);
        record.live.iter().any(|sibling| {
            let own = Some(sibling.dot.writer);
            let implied = |writer| self.writers.implies(writer, sibling.dot);
            sibling.dot != version.dot
                && (own == self.current
                    || own == parent
                    || self.current.or(parent).is_some_and(implied))
        })
    }

    fn reissue_one(
        &mut self,
        now: Now,
        key: &Key,
        version: &Version,
        is_apart: bool,
        name: &mut dyn FnMut() -> u64,
    ) -> Result<(), StateError> {
        let mut writers = Writers::clone(&self.writers);
        let writer = match self.current {
            Some(writer) if !is_apart => writer,
            _ => {
                let writer = self.new_name(name());
                let parent = if is_apart { None } else { self.parent };
                let replica = self.replica;
                writers.add(Descriptor {
                    writer,
                    replica,
                    parent,
                })?;
                writer
            }
        };
        let is_new = self.writers.ord(writer).is_none();
        let seq = self.clock.get(writer).map_or(0, Known::base) + 1;
        let dot = crate::clock::Dot { writer, seq };
        let old = self.record(key)?;
        let mut new = Record {
            live: old
                .live
                .iter()
                .filter(|other| other.dot != version.dot)
                .cloned()
                .collect(),
            seen: old.history(),
        };
        new.seen.raise(version.dot);
        new.live.push(Version {
            dot,
            stamp: Stamp::after(now, Some(version.stamp)),
            content: version.content.clone(),
        });
        new.live.sort_by_key(|version| version.dot);
        new.drop_implied(&writers);

        let writers = Arc::new(writers);
        let mut edit = Edit::new(self, &writers).by(writer);
        edit.replace(key, &old, new);
        if is_new && is_apart {
            edit.put_writer(writer);
            let ord = edit.ord(writer);
            put_base(&mut edit.batch, ord, seq);
        } else if is_new {
            edit.put_new_writer(writer);
        }
        self.commit_edit(edit)?;
        self.writers = writers;
        if !is_apart {
            self.current = Some(writer);
        }
        Arc::make_mut(&mut self.clock).insert_range(writer, 1..=seq);
        Ok(())
    }

    /// Ends the current writer, whose name another process uses too. What is live of it above the floor
    /// is then to be written again, by [`State::reissue_collided`].
    pub fn end_collided_writer(&mut self) -> Result<(), StateError> {
        let Some(writer) = self.current else {
            return Ok(());
        };
        let Some(ord) = self.writers.ord(writer) else {
            return Ok(());
        };
        let mut collided = self.collided.clone();
        collided.insert(writer);
        let mut batch = Batch::default();
        let known = self.clock.get(writer).cloned().unwrap_or_default();
        self.known_rows.put_whole(&mut batch, ord, &known);
        batch.remove(Table::Meta, META_LAST_WRITER);
        put_writer_set(&mut batch, META_COLLIDED, &collided);
        self.commit(batch)?;
        self.collided = collided;
        // A child would stand for the other process's writes under the same numbers.
        self.current = None;
        self.parent = None;
        Ok(())
    }

    /// Whether something of an ended writer is still to be written again.
    pub fn has_collided(&self) -> bool {
        !self.collided.is_empty()
    }

    /// Writes again what is live of the writers that were ended because another process uses their name.
    /// Answers which were finished, and how many keys of each were written now.
    ///
    /// Each write is a commit. After an error, or the next open, the rest is still in the log under the
    /// old name, and the row that names the writer is there until nothing is.
    pub fn reissue_collided(
        &mut self,
        now: Now,
        name: &mut dyn FnMut() -> u64,
    ) -> Result<Vec<(WriterId, u64)>, StateError> {
        let mut finished = Vec::new();
        for writer in self.collided.clone() {
            finished.push((writer, self.reissue_live(now, writer, name)?));
        }
        if !finished.is_empty() {
            let mut batch = Batch::default();
            put_writer_set(&mut batch, META_COLLIDED, &BTreeSet::new());
            self.commit(batch)?;
            self.collided.clear();
        }
        Ok(finished)
    }

    /// Writes again what is live of one writer above the floor; answers how many keys that were.
    fn reissue_live(
        &mut self,
        now: Now,
        writer: WriterId,
        name: &mut dyn FnMut() -> u64,
    ) -> Result<u64, StateError> {
        let Some(ord) = self.writers.ord(writer) else {
            return Ok(0);
        };
        let snapshot = self.storage.snapshot();
        let mut keys = 0;
        for entry in log::entries(&*snapshot, ord, 0..=u64::MAX) {
            let (row, value) = entry?;
            let Ok(key) = log::key_of(&row, &value) else {
                continue;
            };
            let record = match self.record(&key) {
                Ok(record) => record,
                Err(StateError::Corrupt { .. }) => continue,
                Err(error) => return Err(error),
            };
            let mine = record
                .live
                .iter()
                .filter(|version| version.dot.writer == writer);
            let again: Vec<Version> = mine.cloned().collect();
            match self.reissue(now, &key, &again, name) {
                Ok(again) => keys += u64::from(again.is_some()),
                Err(StateError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }
}

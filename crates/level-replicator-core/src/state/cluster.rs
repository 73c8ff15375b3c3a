//! Members and epochs of a replica, on disk and in memory.
//!
//! The rule: members and agreements are merged in one commit, so nobody counts an agreement without
//! the newcomers that the one who agreed had admitted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;

use super::{META_LAST_WRITER, META_REPLICA, State, StateError, last_writer_row};
use crate::clock::{Clock, Dot, Known, Now, ReplicaId, WriterId};
use crate::codec::{DecodeError, Reader, seal, unseal};
use crate::log;
use crate::members::{Epoch, Member, Members, decode_member_row, digest, member_row};
use crate::mistake::{Mistake, is_planted};
use crate::storage::{Batch, Snapshot, Table};

const EPOCH_HEAD: u8 = 0;
const EPOCH_CUT: u8 = 1;

/// What only this replica knows of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Life {
    /// Its last sign of life by this replica's wall clock, in microseconds since 1970; 0 if there was none.
    pub seen_wall_us: u64,
    /// The same in steady microseconds of this process; `None` if there was none since the open.
    pub seen_us: Option<u64>,
    /// It was silent for so long that nothing waits for it any more. The next sign of life ends that.
    pub excluded: bool,
}

impl State {
    /// Everybody who ever took part.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What only this replica knows of a member.
    pub fn life(&self, replica: ReplicaId) -> Life {
        self.lives.get(&replica).copied().unwrap_or_default()
    }

    /// The latest epoch; number 0 if there was none.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Whether the latest epoch is not completed here.
    pub fn is_epoch_open(&self) -> bool {
        !self.floor.covers(&self.epoch.cut)
    }

    /// A fingerprint of members and epoch.
    pub fn cluster_digest(&self) -> u64 {
        self.cluster_digest
    }

    fn note_cluster(&mut self) {
        self.cluster_digest = digest(&self.members, &self.epoch);
    }

    /// Those who have not agreed to the open epoch and are waited for.
    pub fn missing_acks(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let waited_for = |replica: &ReplicaId| {
            !self.epoch.acks.contains(replica)
                && (!self.life(*replica).excluded || *replica == self.replica)
        };
        self.members.active().filter(waited_for)
    }

    /// Makes this replica a member. One that was retired, or whose name somebody else uses, takes a
    /// new name first.
    pub(super) fn take_part(&mut self) -> Result<(), StateError> {
        let member = Member {
            retired: false,
            admitted_by: self.replica,
        };
        if self.members.get(self.replica).is_none() {
            self.join_members(&[(self.replica, member)])?;
        }
        Ok(())
    }

    /// Takes a new name, and with it a new writer at the next write.
    pub fn rename(&mut self, random: [u8; 16]) -> Result<(), StateError> {
        let replica = ReplicaId(random);
        let mut batch = Batch::default();
        batch.put(Table::Meta, META_REPLICA, Bytes::copy_from_slice(&random));
        let closed = self.current.and_then(|writer| self.writers.ord(writer));
        if let Some(ord) = closed {
            let known = self.known_of_current();
            self.known_rows.put_whole(&mut batch, ord, &known);
            batch.put(Table::Meta, META_LAST_WRITER, last_writer_row(ord, true));
        }
        let member = Member {
            retired: false,
            admitted_by: replica,
        };
        batch.put(
            Table::Members,
            member_key(replica),
            sealed_member(replica, member, Life::default()),
        );
        self.commit(batch)?;
        if let Some(writer) = self.current.take() {
            let seq = self.clock.get(writer).map_or(0, Known::base);
            self.parent = (seq > 0).then_some(Dot { writer, seq });
        }
        self.replica = replica;
        self.members.join(replica, member);
        self.note_cluster();
        Ok(())
    }

    fn known_of_current(&self) -> Known {
        let known = self.current.and_then(|writer| self.clock.get(writer));
        known.cloned().unwrap_or_default()
    }

    /// Adds a replica that was met; answers whether it is new.
    pub fn admit(&mut self, replica: ReplicaId) -> Result<bool, StateError> {
        if self.members.get(replica).is_some() {
            return Ok(false);
        }
        let admitted_by = self.replica;
        self.join_members(&[(
            replica,
            Member {
                retired: false,
                admitted_by,
            },
        )])
    }

    /// Sends a replica away for good; answers whether that is news.
    pub fn retire(&mut self, replica: ReplicaId) -> Result<bool, StateError> {
        let admitted_by = self
            .members
            .get(replica)
            .map_or(self.replica, |member| member.admitted_by);
        self.join_members(&[(
            replica,
            Member {
                retired: true,
                admitted_by,
            },
        )])
    }

    fn join_members(&mut self, news: &[(ReplicaId, Member)]) -> Result<bool, StateError> {
        let epoch = self.epoch.clone();
        self.merge_cluster(news, epoch, false)
    }

    /// Takes in what a peer knows of members and the epoch; answers whether any of it is news. The
    /// epoch's cut is taken if it `has_cut`.
    pub fn merge_cluster(
        &mut self,
        news: &[(ReplicaId, Member)],
        theirs: Epoch,
        has_cut: bool,
    ) -> Result<bool, StateError> {
        let mut members = self.members.clone();
        let mut batch = Batch::default();
        for &(replica, member) in news {
            if members.join(replica, member) {
                let joined = members.get(replica).unwrap_or(member);
                let row = sealed_member(replica, joined, self.life(replica));
                batch.put(Table::Members, member_key(replica), row);
            }
        }
        // Only members agree; so there are no more agreements than members.
        let mut theirs = theirs;
        theirs
            .acks
            .retain(|replica| members.get(*replica).is_some());
        let mut epoch = None;
        if theirs.id() == self.epoch.id() {
            let acks: BTreeSet<_> = self.epoch.acks.union(&theirs.acks).copied().collect();
            let superseded = self.epoch.superseded.max(theirs.superseded);
            if acks != self.epoch.acks || superseded != self.epoch.superseded {
                let joined = Epoch {
                    acks,
                    superseded,
                    ..self.epoch.clone()
                };
                put_epoch_head(&mut batch, &joined);
                epoch = Some(joined);
            }
        } else if has_cut && theirs.id() > self.epoch.id() {
            self.put_epoch(&mut batch, &theirs);
            epoch = Some(theirs);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        self.commit(batch)?;
        self.members = members;
        if let Some(epoch) = epoch {
            self.epoch = epoch;
        }
        self.note_cluster();
        Ok(true)
    }

    fn put_epoch(&self, batch: &mut Batch, epoch: &Epoch) {
        for (writer, _) in self.epoch.cut.iter() {
            if epoch.cut.get(writer).is_none() {
                batch.remove(Table::Epoch, cut_key(writer));
            }
        }
        for (writer, known) in epoch.cut.iter() {
            let row = cut_key(writer);
            let mut value = Vec::new();
            known.encode(&mut value);
            seal(&row, &mut value);
            batch.put(Table::Epoch, row, value);
        }
        put_epoch_head(batch, epoch);
    }

    /// What a cut made now would hold: all that is known, but of a writer only if all is known that
    /// its parents' chain implies.
    pub fn next_cut(&self) -> Clock {
        if is_planted(Mistake::CutNotClosed) {
            return Clock::clone(&self.clock);
        }
        self.writers.closed_part(&self.clock)
    }

    /// The same without the writers of whom the floor holds all: a cut is about as long as there are
    /// replicas that have written since the last one.
    fn next_cut_above_floor(&self) -> Clock {
        let mut cut = Clock::default();
        for (writer, known) in self.next_cut().iter() {
            if !self.floor.covers_writer(writer, known) {
                cut.set(writer, known.clone());
            }
        }
        cut
    }

    /// Whether the floor would be closed with the epoch's cut: a cut leaves out what its proposer's floor
    /// holds, which a replica hears of in its next conversation with one that has it.
    pub fn is_cut_closed(&self) -> bool {
        let mut floor = Clock::clone(&self.floor);
        floor.union(&self.epoch.cut);
        self.writers.closed_part(&floor) == floor || is_planted(Mistake::CutNotClosed)
    }

    /// Whether a cut made now would make anything superfluous.
    pub fn has_reclaimable(&self) -> Result<bool, StateError> {
        if self.floor == self.clock {
            return Ok(false);
        }
        let cut = self.next_cut();
        let news = cut.difference(&self.floor);
        if news.is_empty() {
            return Ok(false);
        }
        let snapshot = self.storage.snapshot();
        let first = |table| {
            snapshot
                .range(table, Bound::Unbounded, Bound::Unbounded)
                .next()
        };
        if let Some(entry) = first(Table::Waiting) {
            entry?;
            return Ok(true);
        }
        for (writer, range) in news {
            let Some(ord) = self.writers.ord(writer) else {
                continue;
            };
            if let Some(entry) = log::entries(&*snapshot, ord, range).next() {
                entry?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Begins an epoch in which everybody is to come to know what is known here.
    pub fn propose(&mut self) -> Result<(), StateError> {
        let Some(number) = self.epoch.number.checked_add(1) else {
            // No honest replica counts so far. Nothing is reclaimed any more, and nothing is lost.
            return Ok(());
        };
        let was_given_up = self.is_epoch_open();
        let superseded = if was_given_up {
            self.epoch.superseded.saturating_add(1)
        } else {
            0
        };
        let epoch = Epoch {
            number,
            proposer: self.replica,
            superseded,
            cut: self.next_cut_above_floor(),
            acks: BTreeSet::new(),
        };
        let mut batch = Batch::default();
        self.put_epoch(&mut batch, &epoch);
        self.commit(batch)?;
        self.epoch = epoch;
        self.note_cluster();
        Ok(())
    }

    /// Whether this replica knows the open epoch's cut and has not said so.
    pub fn may_ack(&self) -> bool {
        self.is_epoch_open()
            && !self.epoch.acks.contains(&self.replica)
            && (self.clock.covers(&self.epoch.cut) || is_planted(Mistake::AckEarly))
    }

    /// Says that this replica knows the epoch's cut, and will after a loss of power too.
    pub fn ack(&mut self) -> Result<(), StateError> {
        let mut epoch = self.epoch.clone();
        epoch.acks.insert(self.replica);
        self.merge_cluster(&[], epoch, false)?;
        Ok(())
    }

    /// Makes the cut of the open epoch part of the floor if everybody who is waited for has agreed;
    /// answers whether it did.
    pub fn complete(&mut self) -> Result<bool, StateError> {
        let agreed =
            self.missing_acks().next().is_none() || is_planted(Mistake::EpochWithoutMembers);
        if !self.is_epoch_open() || !agreed || !self.clock.covers(&self.epoch.cut) {
            return Ok(false);
        }
        if !self.is_cut_closed() {
            // Either the floor that it stands on is still to be heard of, or nobody may make a floor of
            // it: then it is superseded once it is overdue.
            return Ok(false);
        }
        let mut batch = Batch::default();
        self.put_lives(&mut batch);
        let growth = self.grow_floor(&mut batch, &self.epoch.cut, false);
        self.commit(batch)?;
        self.take_floor(growth);
        Ok(true)
    }

    /// Notes a sign of life of a member; answers whether it had been given up.
    pub fn note_life(&mut self, now: Now, replica: ReplicaId) -> Result<bool, StateError> {
        let Some(member) = self.members.get(replica) else {
            return Ok(false);
        };
        let mut life = self.life(replica);
        let was_excluded = std::mem::replace(&mut life.excluded, false);
        life.seen_us = Some(now.steady_us);
        life.seen_wall_us = now.wall_us;
        if was_excluded {
            let mut batch = Batch::default();
            put_life(&mut batch, replica, member, life);
            self.commit(batch)?;
        }
        self.lives.insert(replica, life);
        Ok(was_excluded)
    }

    /// The rows that keep when each member was heard of last.
    pub(super) fn put_lives(&self, batch: &mut Batch) {
        for (replica, member) in self.members.iter() {
            let life = self.life(replica);
            if life.seen_us.is_some() {
                put_life(batch, replica, member, life);
            }
        }
    }

    /// Waits for a member no longer, until it shows a sign of life.
    pub fn exclude(&mut self, replica: ReplicaId) -> Result<(), StateError> {
        let Some(member) = self.members.get(replica) else {
            return Ok(());
        };
        let mut life = self.life(replica);
        life.excluded = true;
        let mut batch = Batch::default();
        put_life(&mut batch, replica, member, life);
        self.commit(batch)?;
        self.lives.insert(replica, life);
        Ok(())
    }
}

/// What the members table holds.
pub(super) fn load_members(
    snapshot: &dyn Snapshot,
) -> Result<(Members, BTreeMap<ReplicaId, Life>), StateError> {
    let mut members = Members::default();
    let mut lives = BTreeMap::new();
    for entry in snapshot.range(Table::Members, Bound::Unbounded, Bound::Unbounded) {
        let (row, value) = entry?;
        let decode = || {
            let id = row[..].try_into();
            let id = id.map_err(|_| DecodeError::Invalid { what: "member row" })?;
            Ok((
                ReplicaId(id),
                decode_member_row(unseal(&row, &value, "member row")?)?,
            ))
        };
        // Who it was is told again by the next who knows it.
        let Ok::<_, DecodeError>((replica, (member, seen_wall_us, excluded))) = decode() else {
            continue;
        };
        members.join(replica, member);
        let life = Life {
            seen_wall_us,
            seen_us: None,
            excluded,
        };
        lives.insert(replica, life);
    }
    Ok((members, lives))
}

/// What the epoch table holds.
pub(super) fn load_epoch(snapshot: &dyn Snapshot) -> Result<Epoch, StateError> {
    const WHAT: &str = "epoch row";
    let mut epoch = Epoch::default();
    let mut cut = Clock::default();
    for entry in snapshot.range(Table::Epoch, Bound::Unbounded, Bound::Unbounded) {
        let (row, value) = entry?;
        let mut decode = || {
            let mut key = Reader::new(row.clone(), WHAT);
            let mut value = Reader::new(unseal(&row, &value, WHAT)?, WHAT);
            match key.u8()? {
                EPOCH_HEAD => epoch = Epoch::decode_head(&mut value)?,
                EPOCH_CUT => cut.set(WriterId(key.u64()?), Known::decode(&mut value)?),
                _ => return Err(DecodeError::Invalid { what: WHAT }),
            }
            key.finish()?;
            value.finish()
        };
        // Peers tell it again, and if there are none it is proposed anew.
        if decode().is_err() {
            return Ok(Epoch::default());
        }
    }
    epoch.cut = cut;
    Ok(epoch)
}

fn put_epoch_head(batch: &mut Batch, epoch: &Epoch) {
    let row = Bytes::from_static(&[EPOCH_HEAD]);
    let mut value = Vec::new();
    epoch.encode_head(&mut value);
    seal(&row, &mut value);
    batch.put(Table::Epoch, row, value);
}

fn cut_key(writer: WriterId) -> Bytes {
    let mut key = vec![EPOCH_CUT];
    key.extend_from_slice(&writer.0.to_be_bytes());
    key.into()
}

fn member_key(replica: ReplicaId) -> Bytes {
    Bytes::copy_from_slice(&replica.0)
}

fn put_life(batch: &mut Batch, replica: ReplicaId, member: Member, life: Life) {
    let row = sealed_member(replica, member, life);
    batch.put(Table::Members, member_key(replica), row);
}

fn sealed_member(replica: ReplicaId, member: Member, life: Life) -> Vec<u8> {
    let mut row = member_row(member, life.seen_wall_us, life.excluded);
    seal(&replica.0, &mut row);
    row
}

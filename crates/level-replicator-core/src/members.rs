//! Who takes part, and the cut that everybody is to know: members and epochs.
//!
//! The rule: both only grow, so that two replicas' views join into one whatever the order. A member
//! once retired stays retired; of two epochs the later one stands, and of one epoch all agreements
//! count. Nothing here decides what is safe: whoever does not know a completed cut is healed before
//! it is told anything else, so an epoch that completes too early costs traffic and loses nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::clock::{Clock, ReplicaId};
use crate::codec::{DecodeError, Reader, put_varint};
use crate::limits::MEMBERS_MAX;

/// What all replicas are to know of one that takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// It left for good, or was sent away; its name is never used again.
    pub retired: bool,
    /// Who met it first.
    pub admitted_by: ReplicaId,
}

/// Everybody who ever took part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members(BTreeMap<ReplicaId, Member>);

impl Members {
    /// What is known of one replica.
    pub fn get(&self, replica: ReplicaId) -> Option<Member> {
        self.0.get(&replica).copied()
    }

    /// Everybody, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (ReplicaId, Member)> + '_ {
        self.0.iter().map(|(&replica, &member)| (replica, member))
    }

    /// Those who have not retired, in the order of names.
    pub fn active(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let active = self.0.iter().filter(|(_, member)| !member.retired);
        active.map(|(&replica, _)| replica)
    }

    /// Number of members, the retired ones too.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a replica retired.
    pub fn is_retired(&self, replica: ReplicaId) -> bool {
        self.get(replica).is_some_and(|member| member.retired)
    }

    /// Adds what somebody knows of one replica; answers whether that is news. Nobody is added beyond
    /// the limit.
    pub fn join(&mut self, replica: ReplicaId, member: Member) -> bool {
        let full = self.0.len() >= MEMBERS_MAX;
        let Some(known) = self.0.get_mut(&replica) else {
            if !full {
                self.0.insert(replica, member);
            }
            return !full;
        };
        let joined = Member {
            retired: known.retired || member.retired,
            admitted_by: known.admitted_by.min(member.admitted_by),
        };
        std::mem::replace(known, joined) != joined
    }
}

impl Member {
    /// Appends the member as 17 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.retired));
        out.extend_from_slice(&self.admitted_by.0);
    }

    /// Reads what [`Member::encode`] wrote.
    pub fn decode(reader: &mut Reader) -> Result<Member, DecodeError> {
        let retired = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Invalid { what: "member" }),
        };
        let admitted_by = ReplicaId(reader.array()?);
        Ok(Member {
            retired,
            admitted_by,
        })
    }
}

/// A cut through all writes that somebody proposed, and who knows all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// Epochs are counted; of two the one with the greater number stands.
    pub number: u64,
    /// Who proposed it; between equal numbers the greater name stands.
    pub proposer: ReplicaId,
    /// How many epochs in a row were given up before this one.
    pub superseded: u32,
    /// The writes that are to be known by everybody.
    pub cut: Clock,
    /// The members that know all of them.
    pub acks: BTreeSet<ReplicaId>,
}

/// An epoch by its name, without its cut.
pub type EpochId = (u64, ReplicaId);

impl Default for Epoch {
    fn default() -> Self {
        Epoch {
            number: 0,
            proposer: ReplicaId([0; 16]),
            superseded: 0,
            cut: Clock::default(),
            acks: BTreeSet::new(),
        }
    }
}

impl Epoch {
    /// Its name; no two epochs have the same but those of two processes that share their replica's name.
    pub fn id(&self) -> EpochId {
        (self.number, self.proposer)
    }

    /// Appends all but the cut.
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        put_varint(out, self.number);
        out.extend_from_slice(&self.proposer.0);
        put_varint(out, u64::from(self.superseded));
        put_varint(out, self.acks.len() as u64);
        for replica in &self.acks {
            out.extend_from_slice(&replica.0);
        }
    }

    /// Reads what [`Epoch::encode_head`] wrote; the cut is empty.
    pub fn decode_head(reader: &mut Reader) -> Result<Epoch, DecodeError> {
        let number = reader.varint()?;
        let proposer = ReplicaId(reader.array()?);
        let superseded = u32::try_from(reader.varint()?).unwrap_or(u32::MAX);
        let count = reader.count(MEMBERS_MAX, 16)?;
        let acks = (0..count).map(|_| Ok(ReplicaId(reader.array()?)));
        Ok(Epoch {
            number,
            proposer,
            superseded,
            cut: Clock::default(),
            acks: acks.collect::<Result<_, DecodeError>>()?,
        })
    }
}

/// A fingerprint of what one knows about members and the epoch.
pub fn digest(members: &Members, epoch: &Epoch) -> u64 {
    let members: Vec<_> = members.iter().collect();
    digest_of(&members, epoch)
}

/// The same of members that are told in the order of their names.
pub fn digest_of(members: &[(ReplicaId, Member)], epoch: &Epoch) -> u64 {
    let mut bytes = Vec::with_capacity(64 + 33 * members.len());
    for (replica, member) in members {
        bytes.extend_from_slice(&replica.0);
        member.encode(&mut bytes);
    }
    epoch.encode_head(&mut bytes);
    let mut hash = Xxh3::new();
    hash.update(&bytes);
    hash.digest()
}

/// A fingerprint of an epoch's name.
pub fn epoch_digest(epoch: &Epoch) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&epoch.number.to_be_bytes());
    hash.update(&epoch.proposer.0);
    hash.digest()
}

/// The row of a member: what all know of it, and two things that only this replica knows, when it last
/// showed a sign of life (microseconds since 1970) and whether it was given up.
pub fn member_row(member: Member, seen_wall_us: u64, excluded: bool) -> Vec<u8> {
    let mut row = Vec::with_capacity(32);
    member.encode(&mut row);
    row.extend_from_slice(&seen_wall_us.to_be_bytes());
    row.push(u8::from(excluded));
    row
}

/// Reads what [`member_row`] wrote.
pub fn decode_member_row(row: Bytes) -> Result<(Member, u64, bool), DecodeError> {
    let mut reader = Reader::new(row, "member row");
    let member = Member::decode(&mut reader)?;
    let seen_wall_us = reader.u64()?;
    let excluded = reader.u8()? != 0;
    reader.finish()?;
    Ok((member, seen_wall_us, excluded))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ReplicaId = ReplicaId([1; 16]);
    const B: ReplicaId = ReplicaId([2; 16]);

    fn member(retired: bool, admitted_by: ReplicaId) -> Member {
        Member {
            retired,
            admitted_by,
        }
    }

    #[test]
    fn a_member_once_retired_stays_retired() {
        let mut members = Members::default();
        assert!(members.join(A, member(false, A)));
        assert!(members.join(A, member(true, A)));
        assert!(!members.join(A, member(false, A)));
        assert_eq!(members.active().count(), 0);
    }

    #[test]
    fn the_order_of_joins_does_not_matter() {
        let news = [
            (A, member(false, A)),
            (A, member(true, B)),
            (B, member(false, B)),
            (B, member(false, A)),
        ];
        let (mut forth, mut back) = (Members::default(), Members::default());
        for (replica, member) in news {
            forth.join(replica, member);
        }
        for (replica, member) in news.into_iter().rev() {
            back.join(replica, member);
        }
        assert_eq!(forth, back);
    }
}

//! Who wrote: the descriptors of all writers ever met, each with a short local number.
//!
//! The rule: a writer's process held everything its parent had written up to the parent's last
//! number, so a dot of the child on a key implies the parent's dots on *that key*. A [`Clock`]
//! never infers this: one record of a partial transfer may have put the child's dot there.
//!
//! [`Clock`]: crate::clock::Clock

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::clock::{Clock, Dot, Known, ReplicaId, WriterId};
use crate::codec::{DecodeError, Reader, put_varint};

/// What never changes about a writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// The writer.
    pub writer: WriterId,
    /// The replica whose process it was.
    pub replica: ReplicaId,
    /// The last dot of the writer before it in the same data directory.
    pub parent: Option<Dot>,
}

impl Descriptor {
    /// Appends the descriptor: writer, replica, a byte that says whether a parent follows, the parent.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.writer.0.to_be_bytes());
        out.extend_from_slice(&self.replica.0);
        match self.parent {
            None => out.push(0),
            Some(parent) => {
                out.push(1);
                out.extend_from_slice(&parent.writer.0.to_be_bytes());
                put_varint(out, parent.seq);
            }
        }
    }

    /// Reads what [`Descriptor::encode`] wrote.
    pub fn decode(reader: &mut Reader) -> Result<Descriptor, DecodeError> {
        let writer = WriterId(reader.u64()?);
        let replica = ReplicaId(reader.array()?);
        let parent = match reader.u8()? {
            0 => None,
            1 => Some(Dot {
                writer: WriterId(reader.u64()?),
                seq: reader.varint()?,
            }),
            _ => {
                return Err(DecodeError::Invalid {
                    what: "writer descriptor",
                });
            }
        };
        Ok(Descriptor {
            writer,
            replica,
            parent,
        })
    }

    /// The bytes of [`Descriptor::encode`].
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(40);
        self.encode(&mut out);
        out.into()
    }
}

/// A descriptor that cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// The parent is not known, though parents come first.
    #[error("writer {writer} names the unknown parent {parent}")]
    UnknownParent {
        /// The writer that was to be added.
        writer: WriterId,
        /// The parent that it names.
        parent: WriterId,
    },
    /// The writer is known with another replica or parent.
    #[error("writer {writer} is known with another origin")]
    Contradiction {
        /// The writer that was to be added.
        writer: WriterId,
    },
}

/// Local number of a writer: its row on disk, never on the wire.
pub type WriterOrd = u32;

#[derive(Debug, Clone)]
struct Node {
    descriptor: Descriptor,
    parent: Option<WriterOrd>,
    depth: u32,
    /// An ancestor far up, so that a walk to any ancestor takes a logarithmic number of steps
    /// (Myers, "An applicative random-access stack", 1983).
    jump: WriterOrd,
}

/// All writers ever met.
#[derive(Debug, Clone, Default)]
pub struct Writers {
    nodes: Vec<Node>,
    by_id: BTreeMap<WriterId, WriterOrd>,
}

impl Writers {
    /// Number of writers; the next one added gets this as its local number.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no writer was met yet.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Local number of a writer.
    pub fn ord(&self, writer: WriterId) -> Option<WriterOrd> {
        self.by_id.get(&writer).copied()
    }

    /// The descriptor with a local number.
    pub fn by_ord(&self, ord: WriterOrd) -> Option<&Descriptor> {
        self.nodes.get(ord as usize).map(|node| &node.descriptor)
    }

    /// The descriptor of a writer.
    pub fn get(&self, writer: WriterId) -> Option<&Descriptor> {
        self.by_ord(self.ord(writer)?)
    }

    /// All descriptors in the order of their local numbers: parents before their children.
    pub fn iter(&self) -> impl Iterator<Item = &Descriptor> + '_ {
        self.nodes.iter().map(|node| &node.descriptor)
    }

    /// Whether the descriptor could be added, and is new.
    pub fn check(&self, descriptor: &Descriptor) -> Result<bool, DescriptorError> {
        if let Some(known) = self.get(descriptor.writer) {
            let writer = descriptor.writer;
            return if known == descriptor {
                Ok(false)
            } else {
                Err(DescriptorError::Contradiction { writer })
            };
        }
        match descriptor.parent {
            Some(parent) if self.ord(parent.writer).is_none() => {
                Err(DescriptorError::UnknownParent {
                    writer: descriptor.writer,
                    parent: parent.writer,
                })
            }
            _ => Ok(true),
        }
    }

    /// Adds a writer and returns its local number; a known one keeps the number it has.
    pub fn add(&mut self, descriptor: Descriptor) -> Result<WriterOrd, DescriptorError> {
        if !self.check(&descriptor)? {
            return Ok(self.by_id[&descriptor.writer]);
        }
        let ord = self.nodes.len() as WriterOrd;
        let parent = descriptor.parent.and_then(|parent| self.ord(parent.writer));
        let (depth, jump) = match parent {
            None => (0, ord),
            Some(parent) => (self.depth(parent) + 1, self.jump_of_child(parent)),
        };
        self.nodes.push(Node {
            descriptor,
            parent,
            depth,
            jump,
        });
        self.by_id.insert(descriptor.writer, ord);
        Ok(ord)
    }

    /// The part of a clock that is *closed*: of a writer only if everything is known that its parents'
    /// chain implies. Whether a history lies within a closed clock can be asked of its entries alone.
    pub fn closed_part(&self, clock: &Clock) -> Clock {
        let mut closed = Clock::default();
        for node in &self.nodes {
            let Some(known) = clock.get(node.descriptor.writer) else {
                continue;
            };
            let is_closed = node.descriptor.parent.is_none_or(|parent| {
                parent.seq == 0 || closed.get(parent.writer).map_or(0, Known::base) >= parent.seq
            });
            if is_closed {
                closed.set(node.descriptor.writer, known.clone());
            }
        }
        closed
    }

    /// A clock without what the chains of its writers' parents imply, and those chains: each by a writer
    /// that is left and its parent. So it has about one entry for each replica, however often each was
    /// opened. [`Writers::unfold`] undoes it.
    pub fn fold(&self, clock: &Clock) -> (Clock, Vec<(WriterId, Dot)>) {
        let closed = self.closed_part(clock);
        let mut implied = vec![0; self.nodes.len()];
        for node in &self.nodes {
            if let (Some(parent), Some(dot)) = (node.parent, node.descriptor.parent)
                && closed.get(node.descriptor.writer).is_some()
            {
                let most: &mut u64 = &mut implied[parent as usize];
                *most = (*most).max(dot.seq);
            }
        }
        let mut rest = Clock::default();
        let mut chains = Vec::new();
        for (writer, known) in clock.iter() {
            let is_closed = closed.get(writer).is_some();
            let ord = self.ord(writer).filter(|_| is_closed);
            let is_implied = ord.is_some_and(|ord| implied[ord as usize] == known.base());
            if is_implied && known.ahead_len() == 0 {
                continue;
            }
            rest.set(writer, known.clone());
            let parent = self.get(writer).and_then(|descriptor| descriptor.parent);
            if let Some(parent) = parent.filter(|_| is_closed) {
                chains.push((writer, parent));
            }
        }
        (rest, chains)
    }

    /// Adds to a clock what chains of parents imply; `false` if one of the parents is not known here.
    pub fn unfold(&self, clock: &mut Clock, chains: &[(WriterId, Dot)]) -> bool {
        for (_, parent) in chains {
            let mut next = Some(*parent);
            while let Some(dot) = next {
                let Some(descriptor) = self.get(dot.writer) else {
                    return false;
                };
                clock.insert_range(dot.writer, 1..=dot.seq);
                next = descriptor.parent;
            }
        }
        true
    }

    /// Whether a write of `writer` on some key implies `dot` on the same key.
    ///
    /// ```
    /// use level_replicator_core::clock::{Dot, ReplicaId, WriterId};
    /// use level_replicator_core::writers::{Descriptor, Writers};
    ///
    /// let replica = ReplicaId([1; 16]);
    /// let (first, second) = (WriterId(1), WriterId(2));
    /// let last = Dot { writer: first, seq: 9 };
    /// let mut writers = Writers::default();
    /// writers.add(Descriptor { writer: first, replica, parent: None })?;
    /// writers.add(Descriptor { writer: second, replica, parent: Some(last) })?;
    ///
    /// assert!(writers.implies(second, last));
    /// assert!(!writers.implies(second, Dot { writer: first, seq: 10 }));
    /// # Ok::<(), level_replicator_core::writers::DescriptorError>(())
    /// ```
    pub fn implies(&self, writer: WriterId, dot: Dot) -> bool {
        let (Some(mut at), Some(ancestor)) = (self.ord(writer), self.ord(dot.writer)) else {
            return false;
        };
        let below = self.depth(ancestor) + 1;
        if self.depth(at) < below {
            return false;
        }
        while self.depth(at) > below {
            let node = &self.nodes[at as usize];
            at = match node.parent {
                Some(parent) if self.depth(node.jump) < below => parent,
                _ => node.jump,
            };
        }
        let parent = self.nodes[at as usize].descriptor.parent;
        parent.is_some_and(|parent| parent.writer == dot.writer && dot.seq <= parent.seq)
    }

    fn depth(&self, ord: WriterOrd) -> u32 {
        self.nodes[ord as usize].depth
    }

    fn jump_of_child(&self, parent: WriterOrd) -> WriterOrd {
        let node = &self.nodes[parent as usize];
        let far = &self.nodes[node.jump as usize];
        let near_span = node.depth - far.depth;
        let far_span = far.depth - self.depth(far.jump);
        if near_span == far_span {
            far.jump
        } else {
            parent
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: ReplicaId = ReplicaId([7; 16]);

    fn dot(writer: u64, seq: u64) -> Dot {
        Dot {
            writer: WriterId(writer),
            seq,
        }
    }

    fn chain(len: u64) -> Writers {
        let mut writers = Writers::default();
        for writer in 0..len {
            let descriptor = Descriptor {
                writer: WriterId(writer),
                replica: REPLICA,
                parent: (writer > 0).then(|| dot(writer - 1, writer * 10)),
            };
            writers.add(descriptor).expect("parents come first");
        }
        writers
    }

    #[test]
    fn every_ancestor_of_a_long_chain_is_implied_to_its_last_number_and_no_further() {
        let writers = chain(300);

        for ancestor in 0..299 {
            let last = (ancestor + 1) * 10;
            assert!(writers.implies(WriterId(299), dot(ancestor, last)));
            assert!(!writers.implies(WriterId(299), dot(ancestor, last + 1)));
            assert!(!writers.implies(WriterId(ancestor), dot(299, 1)));
        }
    }

    #[test]
    fn cousins_imply_nothing_of_each_other() {
        let mut writers = chain(3);
        let cousin = Descriptor {
            writer: WriterId(100),
            replica: REPLICA,
            parent: Some(dot(1, 5)),
        };
        writers.add(cousin).expect("its parent is known");

        assert!(writers.implies(WriterId(100), dot(1, 5)));
        assert!(writers.implies(WriterId(100), dot(0, 10)));
        assert!(!writers.implies(WriterId(100), dot(1, 6)));
        assert!(!writers.implies(WriterId(100), dot(2, 1)));
        assert!(!writers.implies(WriterId(2), dot(100, 1)));
    }

    #[test]
    fn a_contradicting_descriptor_is_refused() {
        let mut writers = chain(2);
        let other = Descriptor {
            writer: WriterId(1),
            replica: ReplicaId([8; 16]),
            parent: None,
        };
        let writer = WriterId(1);
        assert_eq!(
            writers.add(other),
            Err(DescriptorError::Contradiction { writer })
        );
    }
}

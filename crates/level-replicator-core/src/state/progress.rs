//! How far a heal had come when it was cut, so that the next one goes on from there.
//!
//! The rule: before the key, everything is joined with snapshots that know at least what the first
//! healer knew. That stays true while local writes are made, and while a peer that knows as much goes on.
//! It ends as soon as anything else of a peer is taken in: that may bring back what the healer's
//! snapshot did not hold, because it was deleted and reclaimed there. So what the first healer knew
//! becomes known at the end, whoever else went on; and nothing else does.

use std::sync::Arc;

use super::floor::{HEALED_TO, HEALING, put_row, row_key};
use crate::clock::Clock;
use crate::codec::{put_prefixed, seal};
use crate::mistake::{Mistake, is_planted};
use crate::record::Key;
use crate::storage::{Batch, Table};

/// How far a heal has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// What the first healer knew; or if nothing is reached, of whom rows are left.
    clock: Arc<Clock>,
    to: Option<Key>,
}

impl Progress {
    pub(super) fn new(clock: Clock, to: Option<Key>) -> Progress {
        Progress {
            clock: Arc::new(clock),
            to,
        }
    }

    /// The key before which everything is here.
    pub(super) fn to(&self) -> Option<&Key> {
        self.to.as_ref()
    }

    /// What the first healer knew.
    pub(super) fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// What is left of it when a peer begins that knows so much.
    pub(super) fn before_heal(&self, batch: &mut Batch, context: &Clock) -> Progress {
        if context.covers(&self.clock) || is_planted(Mistake::ResumedByAnybody) {
            return self.clone();
        }
        self.ended(batch)
    }

    /// A heal by a peer that knew `context`, or that went on, has come to a key.
    pub(super) fn reached(&self, batch: &mut Batch, context: &Clock, to: &Key) -> Progress {
        if self.to.as_ref() == Some(to) {
            return self.clone();
        }
        let mut clock = Arc::clone(&self.clock);
        if self.to.is_none() {
            for (writer, _) in self.clock.iter() {
                batch.remove(Table::Floor, row_key(HEALING, writer));
            }
            for (writer, known) in context.iter() {
                put_row(batch, HEALING, writer, known);
            }
            clock = Arc::new(context.clone());
        }
        let row = vec![HEALED_TO];
        let mut value = Vec::with_capacity(to.len() + 16);
        put_prefixed(&mut value, to);
        seal(&row, &mut value);
        batch.put(Table::Floor, row, value);
        Progress {
            clock,
            to: Some(to.clone()),
        }
    }

    /// It is over, or not true any more.
    pub(super) fn ended(&self, batch: &mut Batch) -> Progress {
        if self.to.is_some() {
            batch.remove(Table::Floor, vec![HEALED_TO]);
        }
        Progress {
            clock: Arc::clone(&self.clock),
            to: None,
        }
    }
}

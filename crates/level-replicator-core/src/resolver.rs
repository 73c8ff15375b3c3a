//! What readers see of concurrent values.
//!
//! The rule: a resolver is a *view*. It is applied when reading and never changes what is stored,
//! so replicas with different resolvers, or one that changes its mind, still converge.

use std::fmt;
use std::sync::Arc;

use crate::clock::{Dot, ReplicaId, Stamp};
use crate::mistake::{Mistake, is_planted};
use crate::record::{Key, Record, Value};
use crate::writers::Writers;

/// One of the concurrent values of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The key.
    pub key: Key,
    /// The name of the write.
    pub dot: Dot,
    /// When it was written, by its writer's clock.
    pub stamp: Stamp,
    /// What was written.
    pub value: Value,
    /// From when on readers do not see it any more, each by its own clock; `None` if it stays.
    pub until: Option<Stamp>,
    /// The replica that wrote it.
    pub replica: ReplicaId,
}

type Fold = dyn Fn(Sibling, Sibling) -> Sibling + Send + Sync;

/// Decides which value of a key with siblings readers see.
///
/// The siblings are put in a canonical order (stamp, then dot) and folded from the first to the
/// last, so that every deterministic resolver shows the same value on all replicas that hold the
/// same siblings. With one value nothing is asked.
///
/// ```
/// use level_replicator_core::resolver::Resolver;
///
/// // The largest value wins, as bytes.
/// let resolver = Resolver::pick(|a, b| b.value > a.value);
///
/// // Both values, one after the other.
/// let resolver = Resolver::merge(|a, b| [&a.value[..], &b.value[..]].concat());
/// # let _ = resolver;
/// ```
#[derive(Clone)]
pub struct Resolver {
    fold: Arc<Fold>,
}

impl Resolver {
    /// The greatest stamp wins; between equal stamps, the greater dot. The default.
    pub fn last_write_wins() -> Resolver {
        // The canonical order ends with the winner.
        Resolver::pick(|_, _| true)
    }

    /// The least stamp wins; between equal stamps, the lesser dot.
    pub fn first_write_wins() -> Resolver {
        Resolver::pick(|_, _| false)
    }

    /// Chooses between two: true takes the second, which was written later by the stamps.
    pub fn pick(
        takes_second: impl Fn(&Sibling, &Sibling) -> bool + Send + Sync + 'static,
    ) -> Resolver {
        Resolver {
            fold: Arc::new(move |a, b| if takes_second(&a, &b) { b } else { a }),
        }
    }

    /// Makes one value of two. The result stands in the place of the second when a third follows.
    pub fn merge<V: Into<Value>>(
        merge: impl Fn(&Sibling, &Sibling) -> V + Send + Sync + 'static,
    ) -> Resolver {
        Resolver {
            fold: Arc::new(move |a, b| {
                let value = merge(&a, &b).into();
                Sibling { value, ..b }
            }),
        }
    }

    /// What readers see of a record at a moment, if it has any value then: the value, and when it expires.
    pub fn resolve(
        &self,
        key: &Key,
        record: &Record,
        writers: &Writers,
        now: Stamp,
    ) -> Option<(Value, Option<Stamp>)> {
        let mut shown = record.shown(now);
        let first = shown.next()?;
        if shown.next().is_none() {
            let value = first.value()?.clone();
            return Some((value, first.content.until()));
        }
        let folded = siblings(key, record, writers, now)
            .into_iter()
            .reduce(|a, b| (self.fold)(a, b));
        folded.map(|sibling| (sibling.value, sibling.until))
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Resolver::last_write_wins()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The values of a record that readers may see at a moment, in canonical order: by stamp, then by dot.
pub fn siblings(key: &Key, record: &Record, writers: &Writers, now: Stamp) -> Vec<Sibling> {
    let mut siblings: Vec<Sibling> = record
        .shown(now)
        .filter_map(|version| {
            let descriptor = writers.get(version.dot.writer)?;
            Some(Sibling {
                key: key.clone(),
                dot: version.dot,
                stamp: version.stamp,
                value: version.value()?.clone(),
                until: version.content.until(),
                replica: descriptor.replica,
            })
        })
        .collect();
    siblings.sort_by_key(|sibling| (sibling.stamp, sibling.dot));
    if is_planted(Mistake::TieNotByDot) {
        siblings.sort_by_key(|sibling| (sibling.stamp, writers.ord(sibling.dot.writer)));
    }
    siblings
}

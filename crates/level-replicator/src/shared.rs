//! What the threads of a program and the database's own thread share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use level_replicator_core::address::Address;
use level_replicator_core::clock::Stamp;
use level_replicator_core::event::Discovery;
use level_replicator_core::replica::{Input, Replica};
use level_replicator_core::resolver::Resolver;
use level_replicator_core::storage::Storage;
use level_replicator_core::writers::Writers;
use tokio::sync::Notify;

use crate::changes::FeedSignal;
use crate::error::Error;
use crate::event_hub::EventHub;
use crate::group_sync::GroupSync;
use crate::options::Durability;
use crate::system_clock::SystemClock;

/// One open database.
pub(crate) struct Shared {
    replica: Mutex<Replica>,
    /// Signalled after the database's thread has changed the replica.
    pub(crate) progress: Condvar,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) resolver: Resolver,
    pub(crate) durability: Durability,
    pub(crate) clock: SystemClock,
    pub(crate) events: EventHub,
    pub(crate) group_sync: GroupSync,
    pub(crate) feed: FeedSignal,
    pub(crate) listen: Option<Address>,
    pub(crate) value_bytes_max: usize,
    /// Wakes the database's thread.
    pub(crate) wake: Notify,
    /// Ends the database's thread.
    pub(crate) stop: Notify,
    /// Links whose tasks run.
    pub(crate) links: AtomicUsize,
    pub(crate) multicast: AtomicBool,
    /// When peers may be reminded again of what somebody waits for, in steady microseconds.
    pub(crate) remind_us: AtomicU64,
    pub(crate) may_write: AtomicBool,
    closed: AtomicBool,
    writers: RwLock<Arc<Writers>>,
}

impl Shared {
    pub(crate) fn new(
        replica: Replica,
        resolver: Resolver,
        durability: Durability,
        clock: SystemClock,
        listen: Option<Address>,
    ) -> Shared {
        Shared {
            storage: Arc::clone(replica.state().storage()),
            value_bytes_max: replica.config().value_bytes_max,
            writers: RwLock::new(Arc::clone(replica.state().writers())),
            replica: Mutex::new(replica),
            progress: Condvar::new(),
            resolver,
            durability,
            clock,
            events: EventHub::default(),
            group_sync: GroupSync::default(),
            feed: FeedSignal::default(),
            listen,
            wake: Notify::new(),
            stop: Notify::new(),
            links: AtomicUsize::new(0),
            multicast: AtomicBool::new(false),
            remind_us: AtomicU64::new(0),
            may_write: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// The replica, for as long as the guard lives. What changes the replica must not panic
    /// half-way; if it did, going on would be worse than stopping.
    pub(crate) fn replica(&self) -> MutexGuard<'_, Replica> {
        self.replica
            .lock()
            .expect("a thread panicked while it changed the replica")
    }

    /// Something may have been committed: what waits for that goes on.
    pub(crate) fn note_commits(&self, replica: &Replica) {
        self.group_sync.note_commits(replica.state().commits());
        if let Some(end) = replica.state().feed_end() {
            self.feed.advance(end);
        }
    }

    /// The writers as of some moment ago.
    pub(crate) fn writers(&self) -> Arc<Writers> {
        Arc::clone(&self.writers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The writers as of now.
    pub(crate) fn refresh_writers(&self) -> Arc<Writers> {
        let now = Arc::clone(self.replica().state().writers());
        *self.writers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&now);
        now
    }

    /// Some addresses are named by sources, and others no longer.
    pub(crate) fn tell_source(&self, come: &[Address], gone: &[Address]) {
        if come.is_empty() && gone.is_empty() {
            return;
        }
        let now = self.clock.now();
        let mut replica = self.replica();
        for address in gone {
            replica.remove_source_peer(now, address);
        }
        for address in come {
            replica.handle_input(now, Input::Discovered(address.clone(), Discovery::Source));
        }
        drop(replica);
        self.wake.notify_one();
    }

    /// The moment that readers compare with when a value expires.
    pub(crate) fn now_stamp(&self) -> Stamp {
        Stamp::from_micros(self.clock.now().wall_us)
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Marks the database closed; answers whether it was open.
    pub(crate) fn mark_closed(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }
}

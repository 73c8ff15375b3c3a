//! Programs that follow changes: where each has read to, and how it waits for more.
//!
//! The rule: a reader is told of the end of the feed only after it has looked, and waits only while the end has not moved since
//! before that look. So no change is waited for that is there.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use level_replicator_core::state::{Cursor, FeedChange, feed_cursor, read_feed};
use level_replicator_core::writers::Writers;

use crate::db::{Db, Snapshot};
use crate::error::Error;
use crate::shared::Shared;
use crate::system_clock::deadline;

/// Changes that are read at once.
const READ_CHANGES: usize = 256;

/// The durable feed of changes of a database, read from a [`Cursor`] on.
///
/// Changes come in the order in which they were committed here, each once: writes made here and those learned of from peers.
/// Each tells behind which cursor it stands; a program that keeps the cursor of the last change that it has dealt with goes on
/// exactly there, also after its own end or that of the database. The feed says *that* a key changed; what readers see of it
/// by now is [`Db::get`]'s to tell, and may be newer.
///
/// As an iterator it blocks for each next change, and ends when the database is closed. It keeps the directory locked until
/// it is dropped.
///
/// ```
/// use level_replicator::{Cursor, Options};
///
/// let directory = tempfile::tempdir()?;
/// let db = Options::new().change_feed(true).open(directory.path())?;
/// db.put("key", "value")?;
/// let mut changes = db.changes(Cursor::START)?;
/// let change = changes.try_next()?.expect("a change");
/// assert_eq!((&change.key[..], change.is_local), (&b"key"[..], true));
/// assert_eq!(changes.try_next()?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Changes {
    shared: Arc<Shared>,
    cursor: Cursor,
    /// What was read and not yet handed out.
    ready: VecDeque<FeedChange>,
}

impl Db {
    /// The changes that follow a cursor, and those to come.
    ///
    /// From [`Cursor::START`] they are all changes that were ever made; from [`Db::cursor`] those to come. The feed is kept only
    /// by a database that was opened with [`Options::change_feed`](crate::Options::change_feed).
    ///
    /// # Errors
    ///
    /// [`Error::FellBehind`] if some of what followed the cursor is not kept any more, was never kept, or the cursor is
    /// of another replica or copy, whose changes were others; [`Error::ChangesNotKept`].
    pub fn changes(&self, cursor: Cursor) -> Result<Changes, Error> {
        let mut changes = Changes {
            shared: Arc::clone(self.shared()),
            cursor,
            ready: VecDeque::new(),
        };
        changes.fill()?;
        Ok(changes)
    }

    /// Behind the last change so far.
    ///
    /// # Errors
    ///
    /// [`Error::ChangesNotKept`], [`Error::Storage`], [`Error::Corrupt`].
    pub fn cursor(&self) -> Result<Cursor, Error> {
        self.check_open()?;
        Ok(feed_cursor(&*self.storage().snapshot())?)
    }
}

impl Snapshot {
    /// Behind the last change that this view shows: whoever reads everything here, and then the changes from there, has missed
    /// nothing and sees nothing twice.
    ///
    /// # Errors
    ///
    /// As [`Db::cursor`].
    pub fn cursor(&self) -> Result<Cursor, Error> {
        Ok(feed_cursor(self.tables())?)
    }
}

impl Changes {
    /// Behind the last change that was handed out.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next change, if there is one by now.
    ///
    /// # Errors
    ///
    /// As [`Db::changes`]; [`Error::Closed`].
    pub fn try_next(&mut self) -> Result<Option<FeedChange>, Error> {
        if self.ready.is_empty() {
            self.fill()?;
        }
        let next = self.ready.pop_front();
        if let Some(change) = &next {
            self.cursor = change.cursor;
        }
        Ok(next)
    }

    /// Waits for the next change for at most `timeout`; `None` when none came.
    ///
    /// # Errors
    ///
    /// As [`Changes::try_next`].
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<FeedChange>, Error> {
        let deadline = deadline(timeout);
        loop {
            let end = self.shared.feed.lock().end;
            let next = self.try_next()?;
            if next.is_some() || !self.shared.feed.wait(end, deadline) {
                return Ok(next);
            }
        }
    }

    /// Waits for the next change inside any async runtime.
    ///
    /// # Errors
    ///
    /// As [`Changes::try_next`].
    pub async fn next_async(&mut self) -> Result<FeedChange, Error> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The next change if there is one by now; else the task is woken when there may be. For what is polled by hand.
    ///
    /// # Errors
    ///
    /// As [`Changes::try_next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<FeedChange, Error>> {
        loop {
            let end = self.shared.feed.lock().end;
            if let Some(next) = self.try_next().transpose() {
                return Poll::Ready(next);
            }
            let mut signal = self.shared.feed.lock();
            if signal.end == end && !signal.closed {
                let waker = context.waker();
                signal.wakers.retain(|other| !other.will_wake(waker));
                signal.wakers.push(waker.clone());
                return Poll::Pending;
            }
        }
    }

    fn fill(&mut self) -> Result<(), Error> {
        self.shared.check_open()?;
        let snapshot = self.shared.storage.snapshot();
        let read =
            |writers: Arc<Writers>| read_feed(&*snapshot, &writers, self.cursor, READ_CHANGES);
        let mut changes = read(self.shared.writers())?;
        if changes
            .iter()
            .any(|change| change.dot.is_some() && change.origin.is_none())
        {
            changes = read(self.shared.refresh_writers())?;
        }
        self.ready = changes.into();
        Ok(())
    }
}

impl Iterator for Changes {
    type Item = Result<FeedChange, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_timeout(Duration::MAX) {
                Ok(None) => {}
                Err(Error::Closed) => return None,
                next => return next.transpose(),
            }
        }
    }
}

/// Tells those who wait that the feed has become longer.
#[derive(Default)]
pub(crate) struct FeedSignal {
    signal: Mutex<Signal>,
    moved: Condvar,
}

#[derive(Default)]
struct Signal {
    /// The number of the last change.
    end: u64,
    closed: bool,
    wakers: Vec<Waker>,
}

impl FeedSignal {
    pub(crate) fn advance(&self, end: u64) {
        let mut signal = self.lock();
        if signal.end != end {
            signal.end = end;
            self.wake(signal);
        }
    }

    pub(crate) fn close(&self) {
        let mut signal = self.lock();
        signal.closed = true;
        self.wake(signal);
    }

    fn wake(&self, mut signal: MutexGuard<'_, Signal>) {
        let wakers = std::mem::take(&mut signal.wakers);
        drop(signal);
        self.moved.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until the end is another; false if the deadline passed first.
    fn wait(&self, end: u64, deadline: Instant) -> bool {
        let mut signal = self.lock();
        while signal.end == end && !signal.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let moved = self.moved.wait_timeout(signal, left);
            signal = moved.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    // No code that runs under this lock can panic, so a poisoned one guards good data.
    fn lock(&self) -> MutexGuard<'_, Signal> {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

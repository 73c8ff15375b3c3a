//! Events on their way to the program: bounded queues, one per receiver.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use level_replicator_core::event::Event;

use crate::system_clock::deadline;

/// Events that wait for one receiver before the oldest are dropped.
const QUEUE_MAX: usize = 4_096;

/// Hands every event to every receiver.
#[derive(Default)]
pub(crate) struct EventHub {
    inner: Mutex<Hub>,
}

#[derive(Default)]
struct Hub {
    queues: Vec<Weak<Queue>>,
    /// What happened before anybody listened, for the first receiver.
    early: Arc<Queue>,
    had_receiver: bool,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// Changes of keys are passed over.
    skips_changes: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Event>,
    missed: u64,
    closed: bool,
    waker: Option<Waker>,
}

impl EventHub {
    pub(crate) fn send(&self, event: Event) {
        let mut hub = lock(&self.inner);
        if !hub.had_receiver {
            hub.early.push(event);
            return;
        }
        hub.queues.retain(|queue| match queue.upgrade() {
            None => false,
            Some(queue) => {
                let is_change = matches!(event, Event::Change { .. });
                if !(is_change && queue.skips_changes.load(Ordering::Relaxed)) {
                    queue.push(event.clone());
                }
                true
            }
        });
    }

    /// A new receiver. The first one also gets what happened before it.
    pub(crate) fn subscribe(&self) -> Events {
        let mut hub = lock(&self.inner);
        let queue = std::mem::take(&mut hub.early);
        if hub.closed {
            queue.close();
        }
        hub.had_receiver = true;
        hub.queues.push(Arc::downgrade(&queue));
        Events { queue }
    }

    /// A new receiver that is not told of changes of keys.
    pub(crate) fn subscribe_but_changes(&self) -> Events {
        let events = self.subscribe();
        events.queue.skips_changes.store(true, Ordering::Relaxed);
        events
    }

    /// Ends every receiver once it has read what is there.
    pub(crate) fn close(&self) {
        let mut hub = lock(&self.inner);
        hub.closed = true;
        let queues = hub.queues.iter().filter_map(Weak::upgrade);
        queues.for_each(|queue| queue.close());
    }
}

impl Queue {
    fn push(&self, event: Event) {
        let mut waiting = lock(&self.waiting);
        if waiting.events.len() >= QUEUE_MAX {
            waiting.events.pop_front();
            waiting.missed += 1;
        }
        waiting.events.push_back(event);
        self.wake(waiting);
    }

    fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        self.wake(waiting);
    }

    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let waker = waiting.waker.take();
        drop(waiting);
        self.arrived.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Event> {
        if self.missed > 0 {
            let count = std::mem::take(&mut self.missed);
            return Some(Event::Missed { count });
        }
        self.events.pop_front()
    }
}

/// A bounded receiver of [`Event`]s.
///
/// If it is read too slowly the oldest events are dropped, and [`Event::Missed`] says how many.
/// The first receiver of a database also gets what happened before it was made, such as
/// [`Event::Listening`].
///
/// As an iterator it blocks for each next event and ends when the database is closed.
pub struct Events {
    queue: Arc<Queue>,
}

impl Events {
    /// The next event, if one is there.
    pub fn try_recv(&mut self) -> Option<Event> {
        lock(&self.queue.waiting).take()
    }

    /// Waits for the next event; `None` when the database is closed and everything is read.
    pub fn recv(&mut self) -> Option<Event> {
        let mut waiting = lock(&self.queue.waiting);
        loop {
            if let Some(event) = waiting.take() {
                return Some(event);
            }
            if waiting.closed {
                return None;
            }
            let arrived = self.queue.arrived.wait(waiting);
            waiting = arrived.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the next event for at most `timeout`; `None` when none came.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Option<Event> {
        let deadline = deadline(timeout);
        let mut waiting = lock(&self.queue.waiting);
        loop {
            if let Some(event) = waiting.take() {
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if waiting.closed || left.is_zero() {
                return None;
            }
            let arrived = self.queue.arrived.wait_timeout(waiting, left);
            waiting = arrived.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the next event inside any async runtime; `None` when the database is closed.
    pub async fn next_async(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut waiting = lock(&self.queue.waiting);
        if let Some(event) = waiting.take() {
            return Poll::Ready(Some(event));
        }
        if waiting.closed {
            return Poll::Ready(None);
        }
        // Only one can wait at a time: the receiver is borrowed exclusively.
        waiting.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.recv()
    }
}

// No code that runs under these locks can panic, so a poisoned one guards good data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(count: u64) -> Event {
        Event::Missed { count }
    }

    #[test]
    fn a_slow_reader_is_told_how_many_it_missed() {
        let hub = EventHub::default();
        let mut events = hub.subscribe();
        for count in 0..QUEUE_MAX as u64 + 3 {
            hub.send(event(count));
        }
        assert_eq!(events.try_recv(), Some(Event::Missed { count: 3 }));
        assert_eq!(events.try_recv(), Some(event(3)));
    }

    #[test]
    fn the_first_receiver_hears_what_happened_before_it() {
        let hub = EventHub::default();
        hub.send(event(7));
        assert_eq!(hub.subscribe().try_recv(), Some(event(7)));
        assert_eq!(hub.subscribe().try_recv(), None);
    }
}

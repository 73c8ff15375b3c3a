//! Who is connected, and who goes when there are too many.
//!
//! The rule: whoever has asked for nothing goes before anybody is turned away, and the one that has been silent for longest
//! goes first; so connections that are only held open cannot keep others out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;

/// What has happened, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) open: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) requests: AtomicU64,
}

/// All connections.
pub(crate) struct Guests {
    max: usize,
    counts: Arc<Counts>,
    present: RefCell<BTreeMap<u64, Rc<Guest>>>,
    next_id: Cell<u64>,
}

/// One connection.
pub(crate) struct Guest {
    id: u64,
    leave: Notify,
    asking: Arc<Asking>,
}

/// Since when a connection has asked for nothing; `None` while a response to it is under way.
struct Asking {
    idle_since: Mutex<Option<Instant>>,
}

/// A connection's place, given back when it is dropped.
pub(crate) struct Place {
    guests: Rc<Guests>,
    guest: Rc<Guest>,
}

/// As long as it lives, a response is under way.
pub(crate) struct Turn {
    asking: Arc<Asking>,
}

impl Guests {
    pub(crate) fn new(max: usize, counts: Arc<Counts>) -> Guests {
        Guests {
            max,
            counts,
            present: RefCell::default(),
            next_id: Cell::new(0),
        }
    }

    /// A place for one more. `None` if there are as many as there may be, and all of them are being answered.
    pub(crate) fn admit(self: &Rc<Self>) -> Option<Place> {
        let mut present = self.present.borrow_mut();
        if present.len() >= self.max {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            let silent = present
                .values()
                .filter_map(|guest| Some((guest.asking.idle_since()?, guest.id)));
            let (_, id) = silent.min()?;
            let gone = present.remove(&id)?;
            gone.leave.notify_one();
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        let guest = Rc::new(Guest {
            id,
            leave: Notify::new(),
            asking: Arc::new(Asking {
                idle_since: Mutex::new(Some(Instant::now())),
            }),
        });
        present.insert(id, Rc::clone(&guest));
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        Some(Place {
            guests: Rc::clone(self),
            guest,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.present.borrow().is_empty()
    }
}

impl Place {
    /// Waits until the place is needed for somebody else.
    pub(crate) async fn is_needed(&self) {
        self.guest.leave.notified().await;
    }

    /// Begins a response.
    pub(crate) fn turn(&self) -> Turn {
        self.guest.asking.set_idle_since(None);
        Turn {
            asking: Arc::clone(&self.guest.asking),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guests.present.borrow_mut().remove(&self.guest.id);
        self.guests.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Asking {
    fn idle_since(&self) -> Option<Instant> {
        *self
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_idle_since(&self, since: Option<Instant>) {
        *self
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.asking.set_idle_since(Some(Instant::now()));
    }
}

/// A body whose end is the end of a turn.
pub(crate) struct Answer {
    body: Body,
    _turn: Turn,
}

impl Answer {
    pub(crate) fn new(body: Body, turn: Turn) -> Answer {
        Answer { body, _turn: turn }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(max: usize) -> (Rc<Guests>, Arc<Counts>) {
        let counts = Arc::new(Counts::default());
        (Rc::new(Guests::new(max, Arc::clone(&counts))), counts)
    }

    /// Whether somebody has been asked to go.
    fn is_needed(place: &Place) -> bool {
        let mut waiting = std::pin::pin!(place.is_needed());
        let mut context = Context::from_waker(std::task::Waker::noop());
        std::future::Future::poll(waiting.as_mut(), &mut context).is_ready()
    }

    #[test]
    fn whoever_has_been_silent_for_longest_goes_first() {
        let (guests, counts) = guests(2);
        let first = guests.admit().expect("a place");
        let second = guests.admit().expect("a place");
        // It asks, and is answered: now the other one has been silent for longer.
        drop(first.turn());
        let third = guests.admit().expect("a place");
        assert!(is_needed(&second) && !is_needed(&first) && !is_needed(&third));
        assert_eq!(counts.refused.load(Ordering::Relaxed), 1);
        drop((first, second, third));
        assert!(guests.is_empty());
        assert_eq!(counts.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nobody_goes_while_all_are_being_answered() {
        let (guests, counts) = guests(2);
        let places = [guests.admit(), guests.admit()].map(|place| place.expect("a place"));
        let mut turns: Vec<Turn> = places.iter().map(Place::turn).collect();
        assert!(guests.admit().is_none());
        assert_eq!(counts.refused.load(Ordering::Relaxed), 1);
        assert!(!places.iter().any(is_needed));

        turns.pop();
        assert!(guests.admit().is_some());
        assert!(is_needed(&places[1]) && !is_needed(&places[0]));
    }
}

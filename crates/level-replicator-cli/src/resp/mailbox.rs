//! What other tasks have for a connection: messages of channels, and the end.
//!
//! The rule: a client that does not read costs at most its bound.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

/// Messages for one connection.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    messages: RefCell<VecDeque<Rc<[u8]>>>,
    bytes: Cell<usize>,
    ended: Cell<Option<Ended>>,
    waker: RefCell<Option<Waker>>,
}

/// Why a connection ends that did not end itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The server stops.
    Stopped,
    /// It did not read its messages.
    TooSlow,
}

impl Mailbox {
    /// Adds a message; too many end the connection.
    pub(crate) fn push(&self, message: &Rc<[u8]>, bytes_max: usize) {
        let bytes = self.bytes.get() + message.len();
        if bytes > bytes_max {
            self.messages.borrow_mut().clear();
            self.bytes.set(0);
            self.end(Ended::TooSlow);
            return;
        }
        self.bytes.set(bytes);
        self.messages.borrow_mut().push_back(Rc::clone(message));
        self.wake();
    }

    pub(crate) fn pop(&self) -> Option<Rc<[u8]>> {
        let message = self.messages.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - message.len());
        Some(message)
    }

    /// Tells the connection to end, once.
    pub(crate) fn end(&self, why: Ended) {
        if self.ended.get().is_none() {
            self.ended.set(Some(why));
        }
        self.wake();
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended.get()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.borrow().is_empty()
    }

    /// Who is woken when something comes.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        let mut kept = self.waker.borrow_mut();
        match &mut *kept {
            Some(kept) if kept.will_wake(waker) => {}
            kept => *kept = Some(waker.clone()),
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

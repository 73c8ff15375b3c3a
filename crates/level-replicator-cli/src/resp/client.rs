//! What the server knows of a connection, for `CLIENT LIST` and for those who have something for it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Instant;

use crate::resp::mailbox::Mailbox;
use crate::resp::reply::Protocol;

/// One connection, as others see it.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its number, never used again.
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    pub(crate) local_address: SocketAddr,
    pub(crate) name: RefCell<String>,
    pub(crate) library: RefCell<String>,
    pub(crate) library_version: RefCell<String>,
    pub(crate) protocol: Cell<Protocol>,
    /// The last command, as `CLIENT LIST` shows it.
    pub(crate) last_command: Cell<&'static str>,
    pub(crate) connected_at: Instant,
    pub(crate) active_at: Cell<Instant>,
    /// Commands that its `MULTI` has queued.
    pub(crate) queued: Cell<Option<usize>>,
    pub(crate) watches: Cell<usize>,
    pub(crate) channels: Cell<usize>,
    pub(crate) patterns: Cell<usize>,
    pub(crate) mailbox: Mailbox,
}

impl Client {
    pub(crate) fn new(id: u64, address: SocketAddr, local_address: SocketAddr) -> Client {
        let now = Instant::now();
        Client {
            id,
            address,
            local_address,
            name: RefCell::default(),
            library: RefCell::default(),
            library_version: RefCell::default(),
            protocol: Cell::default(),
            last_command: Cell::new("NULL"),
            connected_at: now,
            active_at: Cell::new(now),
            queued: Cell::new(None),
            watches: Cell::new(0),
            channels: Cell::new(0),
            patterns: Cell::new(0),
            mailbox: Mailbox::default(),
        }
    }

    /// The line of `CLIENT LIST`, without its end.
    pub(crate) fn line(&self) -> String {
        let flags = match (self.queued.get(), self.channels.get() + self.patterns.get()) {
            (Some(_), _) => "x",
            (None, 0) => "N",
            (None, _) => "P",
        };
        let queued = self.queued.get().map_or(-1, |count| count as i64);
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={flags} db=0 sub={} psub={} ssub=0 \
             multi={queued} watch={} cmd={} user=default resp={} lib-name={} lib-ver={}",
            self.id,
            self.address,
            self.local_address,
            self.name.borrow(),
            self.connected_at.elapsed().as_secs(),
            self.active_at.get().elapsed().as_secs(),
            self.channels.get(),
            self.patterns.get(),
            self.watches.get(),
            self.last_command.get().to_ascii_lowercase(),
            self.protocol.get().number(),
            self.library.borrow(),
            self.library_version.borrow(),
        )
    }
}

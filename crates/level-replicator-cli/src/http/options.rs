//! How the server behaves, and every bound it keeps, with its reason.

use std::time::Duration;

use level_replicator::Address;

use crate::resp::Password;

/// Bytes of a request's line and headers: those of a browser with much to say.
pub(crate) const HEADER_BYTES_MAX: usize = 16 << 10;

/// How long an answer of the database is shared: whoever asks more often costs the database nothing.
pub(crate) const SHARED_FOR: Duration = Duration::from_millis(100);

/// How long a stop waits for responses that are under way.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_millis(400);

/// How long a stop waits for a look at a database that does not answer.
pub(crate) const STOP_LOOK_TIMEOUT: Duration = Duration::from_millis(200);

/// What happened lately, of which this much is remembered.
pub(crate) const RECENT_MAX: usize = 50;

/// How HTTP is served. Begin with [`HttpOptions::new`] and set what should differ.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpOptions {
    /// Where to listen; port 0 picks a free one.
    pub listen: Address,
    /// What clients must know, by HTTP Basic with any user's name. Without it only the loopback interface may be
    /// listened on.
    pub password: Option<Password>,
    /// Connections at once. Default 64.
    pub connections_max: usize,
    /// How long a connection may take to say what it wants, and how long it may say nothing between two requests.
    /// Default 5 s.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what waits for it before it is disconnected. Default 10 s.
    pub write_timeout: Duration,
    /// How long a request waits for the database. Default 5 s.
    pub look_timeout: Duration,
}

impl HttpOptions {
    /// The defaults, at an address.
    pub fn new(listen: Address) -> HttpOptions {
        HttpOptions {
            listen,
            password: None,
            connections_max: 64,
            header_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(10),
            look_timeout: Duration::from_secs(5),
        }
    }
}

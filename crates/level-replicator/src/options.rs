//! How a database is opened.

use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use level_replicator_core::address::Address;
use level_replicator_core::config::{ChangeFeed, Config};
use level_replicator_core::resolver::Resolver;
use level_replicator_core::storage::Storage;

use crate::db::Db;
use crate::discovery::multicast::MulticastConfig;
use crate::discovery::source::{PeerSource, SourceSlot};
use crate::error::Error;
use crate::secret::Secret;
use crate::storage::fjall::{FjallOptions, FjallStorage};
use crate::ticket::Ticket;

/// How many changes are kept unless the program says otherwise.
const CHANGES_KEPT: u64 = 1_000_000;

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When the operating system has it: it survives the end of the process, `kill -9` included.
    /// Every second, what was written is also made to survive a loss of power.
    #[default]
    Buffered,
    /// When it would survive a loss of power here. Threads that write at the same time share the cost.
    ///
    /// What other replicas confirm is in their operating system's hands, whatever their setting.
    Sync,
}

/// How a database is opened: where it listens, whom it knows, how it behaves.
///
/// Errors of single options are kept and told by [`Options::open`].
///
/// ```
/// use level_replicator::Options;
///
/// let directory = tempfile::tempdir()?;
/// let db = Options::new().cluster("shop").open(directory.path())?;
/// db.put("some-key", "some-value")?;
/// assert_eq!(db.get("some-key")?.as_deref(), Some(&b"some-value"[..]));
/// db.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub(crate) config: Config,
    pub(crate) listen: Option<Address>,
    pub(crate) peers: Vec<Address>,
    pub(crate) sources: Vec<SourceSlot>,
    pub(crate) multicast: Option<MulticastConfig>,
    pub(crate) secret: Option<Secret>,
    pub(crate) durability: Durability,
    pub(crate) resolver: Resolver,
    engine: FjallOptions,
    problem: Option<(&'static str, String)>,
}

impl Options {
    /// A database that talks to nobody until it is told of somebody.
    pub fn new() -> Options {
        Options::default()
    }

    /// The cluster. Replicas of different clusters never talk. Default "default".
    pub fn cluster(mut self, name: impl Into<String>) -> Options {
        self.config.cluster = name.into();
        self
    }

    /// The address to listen on, `host:port`; port 0 picks a free one. Without it the database
    /// only reaches out. Without a secret it must be on the loopback interface.
    pub fn listen(mut self, address: impl AsRef<str>) -> Options {
        self.listen = self.parse("listen", address.as_ref());
        self
    }

    /// The address that peers are told, if it is not the one listened on.
    pub fn advertise(mut self, address: impl AsRef<str>) -> Options {
        self.config.advertised = self.parse("advertise", address.as_ref());
        self
    }

    /// The address of a peer, `host:port`; any number. Host names are resolved at each attempt.
    pub fn peer(mut self, address: impl AsRef<str>) -> Options {
        if let Some(address) = self.parse("peer", address.as_ref()) {
            self.peers.push(address);
        }
        self
    }

    /// A source of peers, asked `every` so often; any number. What it names is dialed until it names it no
    /// more.
    ///
    /// ```
    /// use std::time::Duration;
    /// use level_replicator::{Options, PeersFile};
    ///
    /// let options = Options::new().peer_source(PeersFile::new("peers"), Duration::from_secs(2));
    /// # let _ = options;
    /// ```
    pub fn peer_source(mut self, source: impl PeerSource + 'static, every: Duration) -> Options {
        self.sources.push(SourceSlot::new(source, every));
        self
    }

    /// The cluster, the secret and a peer that a ticket names.
    pub fn join(self, ticket: &Ticket) -> Options {
        self.cluster(ticket.cluster())
            .secret(ticket.secret().clone())
            .peer(ticket.address().as_str())
    }

    /// Whether to find peers on the local network. Default off. Without a secret, and when
    /// listening on the loopback interface, only processes of this machine are found.
    pub fn multicast(mut self, on: bool) -> Options {
        self.multicast = on.then(|| self.multicast.take().unwrap_or_default());
        self
    }

    /// The multicast group, `address:port`, and turns multicast on. Default 239.192.76.82:7682.
    pub fn multicast_group(mut self, group: impl AsRef<str>) -> Options {
        let text = group.as_ref();
        match text.parse::<SocketAddrV4>() {
            Ok(group) if group.ip().is_multicast() && group.port() != 0 => {
                let loopback_only = false;
                self.multicast = Some(MulticastConfig {
                    group,
                    loopback_only,
                });
            }
            _ => self.refuse(
                "multicast_group",
                format!("'{text}' is no group: expected an address from 224.0.0.0 to 239.255.255.255 and a port"),
            ),
        }
        self
    }

    /// The secret of the cluster. Without one, conversations are encrypted but open to whoever
    /// knows the cluster's name, and only the loopback interface may be listened on.
    pub fn secret(mut self, secret: Secret) -> Options {
        self.secret = Some(secret);
        self
    }

    /// When a write counts as done. Default [`Durability::Buffered`].
    pub fn durability(mut self, durability: Durability) -> Options {
        self.durability = durability;
        self
    }

    /// What readers see of concurrent values. Default [`Resolver::last_write_wins`].
    pub fn resolver(mut self, resolver: Resolver) -> Options {
        self.resolver = resolver;
        self
    }

    /// Longest value in bytes, inclusive. Default 8 MiB, at most 64 MiB.
    pub fn value_bytes_max(mut self, bytes: usize) -> Options {
        self.config.value_bytes_max = bytes;
        self
    }

    /// Longest pause between conversations with a peer. Default 30 s.
    pub fn idle_interval(mut self, interval: Duration) -> Options {
        self.config.idle_interval = interval;
        self
    }

    /// How long a member may be silent before deletes are reclaimed without it. Default 14 days.
    ///
    /// When it comes back it is healed, and what it wrote meanwhile survives: a short horizon costs
    /// traffic, and never data.
    pub fn horizon(mut self, horizon: Duration) -> Options {
        self.config.horizon = horizon;
        self
    }

    /// How long deletes, histories and log entries are left before all members are asked whether they
    /// know them, so that they can be reclaimed. Default 2 s.
    pub fn reclaim_interval(mut self, interval: Duration) -> Options {
        self.config.reclaim_interval = interval;
        self
    }

    /// How long a replica whose catch-up or heal was cut waits for somebody who could finish it, before
    /// it goes on with what it has. Default 60 s.
    pub fn promote_timeout(mut self, timeout: Duration) -> Options {
        self.config.promote_timeout = timeout;
        self
    }

    /// Shortest pause between conversations with a peer. Default 10 ms.
    pub fn min_interval(mut self, interval: Duration) -> Options {
        self.config.min_interval = interval;
        self
    }

    /// How long a link stays open without news; 0 connects, talks and disconnects. Default 1 s.
    pub fn linger(mut self, linger: Duration) -> Options {
        self.config.linger = linger;
        self
    }

    /// How long writes of others wait before they are offered on. Default 20 ms.
    pub fn relay_delay(mut self, delay: Duration) -> Options {
        self.config.relay_delay = delay;
        self
    }

    /// How many peers are dialed at once in a cluster of more than eight. Default 3.
    pub fn fanout(mut self, peers: usize) -> Options {
        self.config.fanout = peers;
        self
    }

    /// How long the first write waits for one conversation; 0 turns that off. Default 2 s.
    pub fn first_sync_timeout(mut self, timeout: Duration) -> Options {
        self.config.first_sync_timeout = timeout;
        self
    }

    /// How long a peer that owes an answer may be silent. Default 10 s.
    pub fn stall_timeout(mut self, timeout: Duration) -> Options {
        self.config.stall_timeout = timeout;
        self.config.hello_timeout = timeout.min(self.config.hello_timeout);
        self
    }

    /// Whether changes are kept for programs that follow them: see [`Db::changes`](crate::Db::changes).
    ///
    /// A new database keeps none unless told to, and then it costs nothing. Not told, a database goes on as it was; `false`
    /// forgets what was kept.
    pub fn change_feed(mut self, keeps: bool) -> Options {
        self.config.change_feed = match keeps {
            true => ChangeFeed::Keep(CHANGES_KEPT),
            false => ChangeFeed::Off,
        };
        self
    }

    /// The same as [`Options::change_feed`], and how many changes are kept at least; older ones go. Default 1,000,000.
    pub fn change_feed_of(mut self, changes: u64) -> Options {
        self.config.change_feed = ChangeFeed::Keep(changes);
        self
    }

    /// Memory for data that was read, in bytes. Default 64 MiB.
    pub fn cache_bytes(mut self, bytes: u64) -> Options {
        self.engine.cache_bytes = bytes;
        self
    }

    /// Opens the database in a directory, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`], [`Error::NewerFormat`], [`Error::NotADatabase`], [`Error::Io`],
    /// [`Error::Engine`] if the directory cannot be used; [`Error::Damaged`] if what it holds is
    /// damaged; [`Error::InvalidOption`], [`Error::Listen`] if an option is wrong.
    pub fn open(self, directory: impl AsRef<Path>) -> Result<Db, Error> {
        self.check()?;
        let directory = directory.as_ref();
        let storage = FjallStorage::open(directory, &self.engine)?;
        self.open_with(Arc::new(storage))
            .map_err(|error| error.at_open(directory))
    }

    /// Opens the database that a storage of your own holds.
    ///
    /// # Errors
    ///
    /// As [`Options::open`], but for what concerns a directory.
    pub fn open_with(self, storage: Arc<dyn Storage>) -> Result<Db, Error> {
        self.check()?;
        Db::open(self, storage)
    }

    /// Whether only processes of this machine may reach the database.
    pub(crate) fn is_loopback_only(&self) -> bool {
        self.secret.is_none() || self.listen.as_ref().is_some_and(is_loopback)
    }

    fn check(&self) -> Result<(), Error> {
        if let Some((option, problem)) = self.problem.clone() {
            return Err(Error::InvalidOption { option, problem });
        }
        self.config.check()?;
        if let Some(listen) = &self.listen
            && self.secret.is_none()
            && !is_loopback(listen)
        {
            return Err(Error::InvalidOption {
                option: "listen",
                problem: format!(
                    "{listen} can be reached from other machines but there is no secret: \
                     set one with Options::secret, or listen on 127.0.0.1"
                ),
            });
        }
        Ok(())
    }

    fn parse(&mut self, option: &'static str, text: &str) -> Option<Address> {
        match text.parse() {
            Ok(address) => Some(address),
            Err(error) => {
                self.refuse(option, error.to_string());
                None
            }
        }
    }

    fn refuse(&mut self, option: &'static str, problem: String) {
        self.problem.get_or_insert((option, problem));
    }
}

fn is_loopback(address: &Address) -> bool {
    let host = address.host().trim_start_matches('[').trim_end_matches(']');
    let ip: Result<std::net::IpAddr, _> = host.parse();
    ip.map_or(host == "localhost", |ip| ip.is_loopback())
}

//! An embedded, ordered key-value store that keeps itself equal to its peers.
//!
//! A program opens a directory and reads and writes it at memory speed, on any machine, at any time,
//! also cut off. Replicas find each other, exchange only what differs, pass on each other's writes,
//! and converge. Conflicts are detected exactly: a write survives until a write that had seen it
//! replaces it, concurrent ones are all kept, and a [`Resolver`] decides what readers see.
//!
//! ```
//! use std::time::Duration;
//! use level_replicator::{Options, Secret};
//!
//! let directory = tempfile::tempdir()?;
//! let secret = Secret::generate()?;
//! let options = || Options::new().cluster("shop").secret(secret.clone()).listen("127.0.0.1:0");
//!
//! let berlin = options().open(directory.path().join("berlin"))?;
//! let address = berlin.status().listen.expect("it listens");
//! let tokyo = options().peer(address.as_str()).open(directory.path().join("tokyo"))?;
//!
//! berlin.put("greeting", "Guten Tag")?;
//! tokyo.sync_now(Duration::from_secs(5))?;
//! assert_eq!(tokyo.get("greeting")?.as_deref(), Some("Guten Tag".as_bytes()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Begin with [`Options`] and [`Db`]. [`Events`] tell what happened, [`Changes`] do so durably, [`Status`] how things are, and
//! every [`Error`] whether anything was changed. The algorithm, the wire and the disk are described
//! in the repository's `docs`.
//!
//! It is not for counters and ledgers without a merge of their own, for collaborative text, for data
//! larger than one machine, or for strangers: whoever has the [`Secret`] is trusted with everything.

mod backup;
mod changes;
mod discovery;
mod driver;
mod error;
mod event_hub;
mod group_sync;
mod options;
mod put_options;
mod range;
mod secret;
mod shared;
mod status;
mod system_clock;
mod ticket;
mod transaction;
mod transport;
mod verify;

mod db;
pub mod storage;

pub use bytes::Bytes;
pub use level_replicator_core::address::Address;
pub use level_replicator_core::clock::{Clock, Dot, ReplicaId, Stamp, WriterId};
pub use level_replicator_core::event::{Discovery, Event, Origin, Peer};
pub use level_replicator_core::record::{Key, Value};
pub use level_replicator_core::replica::Traffic;
pub use level_replicator_core::resolver::{Resolver, Sibling};
pub use level_replicator_core::session::{Misbehavior, PeerError};
pub use level_replicator_core::state::{
    ChangeKind, Cursor, CursorError, FeedChange as Change, Finding, Verification,
};

pub use backup::{BackupProgress, BackupReport};
pub use changes::Changes;
pub use db::{Batch, Db, Snapshot};
pub use discovery::source::{
    DnsPeers, Interrupt, PeerSource, PeersCommand, PeersFile, StaticPeers,
};
pub use error::Error;
pub use event_hub::Events;
pub use options::{Durability, Options};
pub use put_options::PutOptions;
pub use range::{Conflicts, Entry, Range};
pub use secret::Secret;
pub use status::{MemberStatus, PeerStatus, ReclaimStatus, Status, SyncState};
pub use ticket::Ticket;
pub use transaction::Transaction;
pub use verify::VerifyProgress;

//! Everything that can go wrong for a caller. Each variant says whether anything was changed.

use std::io;
use std::path::{Path, PathBuf};

use level_replicator_core::address::{Address, AddressError};
use level_replicator_core::clock::ReplicaId;
use level_replicator_core::config::ConfigError;
use level_replicator_core::state::{Cursor, FeedError, StateError};
use level_replicator_core::storage::StorageError;

use crate::storage::fjall::{OpenError, RESTORE};

/// Why a call failed.
///
/// Conversations with peers never fail a call that reads or writes; their errors are
/// [`Event::Error`](crate::Event::Error).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key has no bytes. Nothing was changed.
    #[error("key is empty: a key has 1 to 65000 bytes")]
    EmptyKey,

    /// Something is over its limit. Nothing was changed.
    #[error("{} exceeds the limit of {limit}", describe_size(.what, .size))]
    TooLarge {
        /// What: "key", "value" or "batch", in bytes; "operations", those of a batch.
        what: &'static str,
        /// How large it is.
        size: usize,
        /// The greatest size that is accepted.
        limit: usize,
    },

    /// The directory is open already, here or in another process. Nothing was changed.
    #[error("database {path:?} is in use by another process or handle; close that one first")]
    Locked {
        /// The directory.
        path: PathBuf,
    },

    /// A newer release wrote the directory. Nothing was changed.
    #[error(
        "database {path:?} has format {found}, written by level-replicator {written_by}; \
         this release reads formats up to {supported}: use that release or a newer one"
    )]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this release reads.
        supported: u32,
        /// The release that wrote it.
        written_by: String,
    },

    /// The directory holds something else. Nothing was changed.
    #[error("{path:?} is no level-replicator database: {problem}")]
    NotADatabase {
        /// The directory.
        path: PathBuf,
        /// What is there instead, and what to do.
        problem: String,
    },

    /// The operating system refused something. Nothing was changed.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },

    /// The storage engine failed. Nothing of the call shows.
    ///
    /// After a failed write the engine accepts no more writes until the database is opened again;
    /// reads go on. The usual cause is a full disk: make room, then open again. What failed may then
    /// turn out to have been written: whole, never in part.
    #[error("storage: {0}; nothing of this call shows")]
    Storage(#[source] StorageError),

    /// A write is in place, and is seen and replicated, but may not survive a loss of power.
    #[error("write is in place but could not be made durable: {0}")]
    NotDurable(#[source] StorageError),

    /// The engine's files cannot be opened. Nothing was changed.
    #[error("{0}")]
    Engine(#[source] OpenError),

    /// Files of the database are damaged, missing, or not its own. They were left as they are.
    #[error("database {path:?} is damaged: {problem}")]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong with which file, and what to do.
        problem: String,
    },

    /// Something stored is damaged. It was not served, and nothing was changed.
    #[error("stored data is damaged: {0}; docs/recovery.md tells what to do")]
    Corrupt(#[source] StateError),

    /// A directory cannot take a backup. Nothing was changed.
    #[error(
        "cannot back up into {path:?}: {problem}; \
         choose a directory that is empty or does not exist yet"
    )]
    BackupTarget {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A backup could not be written. It was given up; the database that was copied is not harmed.
    #[error("backup into {path:?} was given up, the database itself is not harmed: {source}")]
    Backup {
        /// The directory that does not hold it.
        path: PathBuf,
        /// What failed there.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// Changes are not kept. Nothing was changed.
    #[error("changes are not kept: open with Options::change_feed, or serve with --change-feed")]
    ChangesNotKept,

    /// The change feed does not hold all that followed a cursor: it was read too late, changes were not kept
    /// for a while, or the cursor is of another replica or copy. Nothing was changed.
    ///
    /// Read everything in one [`Snapshot`](crate::Snapshot), and go on from its cursor; or skip what is gone, and go on from the
    /// oldest.
    #[error(
        "the change feed does not hold all that follows {cursor}: read everything at one moment and go on from there, \
         or accept the gap and go on from {oldest}"
    )]
    FellBehind {
        /// The cursor.
        cursor: Cursor,
        /// Behind this one everything is kept.
        oldest: Cursor,
    },

    /// The address cannot be listened on. Nothing was changed.
    #[error("cannot listen on {address}: {source}; choose another port, or end what uses it")]
    Listen {
        /// The address.
        address: Address,
        /// What the operating system says.
        source: io::Error,
    },

    /// An option makes no sense. Nothing was changed.
    #[error("option {option}: {problem}")]
    InvalidOption {
        /// Which option.
        option: &'static str,
        /// What is wrong with it, and what would be right.
        problem: String,
    },

    /// A text is no ticket. Nothing was changed.
    #[error("this is no ticket, or not all of one: 'level-replicator invite' prints one")]
    InvalidTicket,

    /// A text is no secret. Nothing was changed.
    #[error("{} no secret: expected one or two lines of 64 hex digits", describe(.path))]
    InvalidSecret {
        /// The file it was read from, if it was.
        path: Option<PathBuf>,
    },

    /// The operating system has no source of chance. Nothing was changed.
    #[error("cannot get random bytes: {0}")]
    Random(#[source] getrandom::Error),

    /// A thread of the database could not be started. Nothing was changed.
    #[error("cannot start the database's thread: {0}")]
    Thread(#[source] io::Error),

    /// A transaction met other writers each time it was tried. Nothing was changed.
    #[error("transaction met other writers {attempts} times in a row; try again")]
    Contended {
        /// How often it was tried.
        attempts: u32,
    },

    /// The closure of a transaction gave up by [`Error::aborted`]. Nothing was changed.
    #[error("transaction was aborted: {0}")]
    Aborted(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// Some peers were not reached in time. What was exchanged with others stays.
    #[error("not reached: {}", list(.addresses))]
    NotReached {
        /// Which peers.
        addresses: Vec<Address>,
    },

    /// A write has not reached enough replicas in time. It stays, and goes on spreading.
    #[error(
        "write has reached {reached} other replicas, not {wanted}, in time; it goes on spreading"
    )]
    NotReplicated {
        /// How many other replicas know the write.
        reached: usize,
        /// How many were asked for.
        wanted: usize,
    },

    /// Conversations did not end in time. None is begun, and they will end.
    #[error("{open} conversations have not ended in time")]
    StillTalking {
        /// How many are left.
        open: usize,
    },

    /// No other member has this name. Nothing was changed.
    #[error("no other member of the cluster is called {replica}: `status` lists them")]
    UnknownMember {
        /// The name.
        replica: ReplicaId,
    },
    /// The database was closed. Nothing was changed.
    #[error("database is closed")]
    Closed,
}

impl Error {
    /// The error by which the closure of a transaction gives up.
    ///
    /// ```
    /// use level_replicator::Error;
    ///
    /// let error = Error::aborted("no such account");
    /// assert_eq!(error.to_string(), "transaction was aborted: no such account");
    /// ```
    pub fn aborted(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Aborted(reason.into())
    }
}

impl Error {
    /// Says in which directory a record is damaged without which the database cannot be opened.
    pub(crate) fn at_open(self, directory: &Path) -> Error {
        match self {
            Error::Corrupt(damage) => Error::Damaged {
                path: directory.to_owned(),
                problem: format!("{damage}; {RESTORE}"),
            },
            other => other,
        }
    }
}

fn describe(path: &Option<PathBuf>) -> String {
    match path {
        Some(path) => format!("{path:?} holds"),
        None => "this is".to_owned(),
    }
}

fn describe_size(what: &str, size: &usize) -> String {
    match what {
        "operations" => format!("batch of {size} operations"),
        _ => format!("{what} of {size} bytes"),
    }
}

fn list(addresses: &[Address]) -> String {
    let texts: Vec<&str> = addresses.iter().map(Address::as_str).collect();
    texts.join(", ")
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Locked { path } => Error::Locked { path },
            OpenError::NewerFormat {
                path,
                found,
                supported,
                written_by,
            } => Error::NewerFormat {
                path,
                found,
                supported,
                written_by,
            },
            OpenError::NotADatabase { path, reason, cure } => Error::NotADatabase {
                path,
                problem: format!("{reason}; {cure}"),
            },
            OpenError::Damaged {
                path,
                file,
                problem,
            } => Error::Damaged {
                path,
                problem: format!("{}: {problem}; {RESTORE}", file.display()),
            },
            OpenError::Io {
                action,
                path,
                source,
            } => Error::Io {
                action,
                path,
                source,
            },
            engine @ OpenError::Engine { .. } => Error::Engine(engine),
        }
    }
}

impl From<FeedError> for Error {
    fn from(error: FeedError) -> Error {
        match error {
            FeedError::Off => Error::ChangesNotKept,
            FeedError::FellBehind { cursor, oldest } => Error::FellBehind { cursor, oldest },
            FeedError::State(error) => error.into(),
        }
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Storage(error) => Error::Storage(error),
            damaged => Error::Corrupt(damaged),
        }
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        Error::Storage(error)
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::InvalidOption {
            option: error.setting,
            problem: error.problem,
        }
    }
}

impl From<AddressError> for Error {
    fn from(error: AddressError) -> Self {
        Error::InvalidOption {
            option: "address",
            problem: error.to_string(),
        }
    }
}

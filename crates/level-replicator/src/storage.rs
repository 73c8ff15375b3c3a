//! Engines that can hold a replica.
//!
//! [`fjall`] keeps it in a directory and is what [`Options::open`](crate::Options::open) uses.
//! [`memory`] keeps it in memory; `leveldb` in a LevelDB database (with the feature of that name). Any other [`Storage`] can be given to
//! [`Options::open_with`](crate::Options::open_with).
//!
//! ```
//! use std::sync::Arc;
//! use level_replicator::{Options, storage::memory::MemoryStorage};
//!
//! let db = Options::new().open_with(Arc::new(MemoryStorage::new()))?;
//! db.put("key", "value")?;
//! # Ok::<(), level_replicator::Error>(())
//! ```

pub mod fjall;
#[cfg(feature = "leveldb")]
pub mod leveldb;

pub use level_replicator_core::storage::{
    Batch, Change, Entries, Snapshot, Storage, StorageError, StorageStats, Table, memory,
};

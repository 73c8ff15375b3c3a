//! How a value is written.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use level_replicator_core::clock::{Stamp, micros};
use level_replicator_core::record::Op;

/// How a value is written; see [`Db::put_with`](crate::Db::put_with).
///
/// ```
/// use std::time::Duration;
/// use level_replicator::{Options, PutOptions};
///
/// # let directory = tempfile::tempdir()?;
/// let db = Options::new().open(directory.path())?;
/// let session = PutOptions::new().expires_in(Duration::from_secs(1_800));
/// db.put_with("session/7", "Ada", &session)?;
///
/// let entry = db.entry("session/7")?.expect("it lives for half an hour");
/// assert!(entry.expires_at.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct PutOptions {
    expires: Option<Expires>,
}

#[derive(Debug, Clone, Copy)]
enum Expires {
    In(Duration),
    At(SystemTime),
}

impl PutOptions {
    /// A value that stays until it is replaced or deleted.
    pub fn new() -> PutOptions {
        PutOptions::default()
    }

    /// Readers see the value for this long after the write.
    ///
    /// Every replica hides it when its own clock has come to the moment that this gives by the clock
    /// of the replica that writes; that replica then deletes it everywhere. A later write of the key,
    /// also one that the delete has not seen, stays.
    pub fn expires_in(mut self, after: Duration) -> PutOptions {
        self.expires = Some(Expires::In(after));
        self
    }

    /// Readers see the value until this moment. One that is past makes a value that nobody sees.
    pub fn expires_at(mut self, at: SystemTime) -> PutOptions {
        self.expires = Some(Expires::At(at));
        self
    }

    pub(crate) fn op(&self, key: &[u8], value: &[u8]) -> Op {
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        let at = match self.expires {
            None => return Op::Put(key, value),
            Some(Expires::At(at)) => at.duration_since(SystemTime::UNIX_EPOCH),
            Some(Expires::In(after)) => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map(|now| now.saturating_add(after)),
        };
        // Before 1970 everything has expired.
        let until = Stamp::from_micros(micros(at.unwrap_or_default()));
        Op::PutUntil(key, value, until)
    }
}

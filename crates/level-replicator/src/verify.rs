//! A full check of everything that a replica holds.

use level_replicator_core::state::Verification;

use crate::db::Db;
use crate::error::Error;

/// Rows between two calls that tell how far a check is.
const ROWS_PER_CALL: u64 = 1_000;

/// How far a check is; see [`Db::verify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Rows of all tables that were read.
    pub rows: u64,
    /// About how many there are, if that is known.
    pub total: Option<u64>,
}

impl Db {
    /// Checks every row of data, log, clock and all else at one moment, their checksums, and that they agree with each other and
    /// with the digest. Reads and writes go on meanwhile; what they replace stays on disk until the end.
    ///
    /// Damage is no error here: each [`Finding`](crate::Finding) tells what is wrong, where, and what to do. `progress` is called
    /// now and then.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the disk cannot be read, [`Error::Closed`] if the database is closed meanwhile.
    ///
    /// ```
    /// # let directory = tempfile::tempdir()?;
    /// # let db = level_replicator::Options::new().open(directory.path())?;
    /// db.put("key", "value")?;
    /// let verified = db.verify(|_| ())?;
    /// assert!(verified.is_sound(), "{:?}", verified.findings);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn verify(&self, mut progress: impl FnMut(VerifyProgress)) -> Result<Verification, Error> {
        self.check_open()?;
        let view = self.shared().replica().state().verify_view();
        let verified = view.verify(|rows, total| {
            if rows % ROWS_PER_CALL == 0 {
                progress(VerifyProgress { rows, total });
            }
            self.check_open().is_ok()
        })?;
        verified.ok_or(Error::Closed)
    }
}

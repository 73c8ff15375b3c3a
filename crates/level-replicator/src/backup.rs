//! A copy of a running replica, taken from one snapshot.
//!
//! The rule: the directory has its final name only when everything in it is whole and on disk. Until
//! then the copy grows beside it, under a name that says that it is unfinished.

use std::fs;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use level_replicator_core::storage::{Batch, Snapshot, Storage, StorageError, Table};

use crate::db::Db;
use crate::error::Error;
use crate::storage::fjall::{FjallOptions, FjallStorage, OpenError, sync_all, sync_parent};

/// What one commit of the copy holds at most, but for a single row that is larger: keys and values in
/// bytes, and rows. Both bound the memory that a backup takes.
const COMMIT_BYTES_MAX: usize = 1 << 20;
const COMMIT_ROWS_MAX: usize = 4_096;

/// The copy is written once and read only by flushes, so blocks need not be kept.
const CACHE_BYTES: u64 = 4 << 20;

/// What the name of a copy ends in until it is whole.
const UNFINISHED: &str = ".unfinished-backup";

/// What a backup has done so far; see [`Db::backup_with`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BackupProgress {
    /// Rows of all tables that were copied: records, and what the replica keeps beside them.
    pub rows: u64,
    /// The keys and values of these rows in bytes.
    pub bytes: u64,
}

/// What a backup has done; see [`Db::backup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// Keys that have a record, those of deleted values included.
    pub keys: u64,
    /// Rows of all tables: records, and what the replica keeps beside them.
    pub rows: u64,
    /// The keys and values of all rows in bytes. On disk they may take less or more.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Db {
    /// Copies this replica, as it is at one moment, into a directory that is missing or empty.
    ///
    /// Every write that was acknowledged before the call is in the copy, and every batch is in it
    /// whole or not at all. Reads and writes go on meanwhile; what they replace stays on disk until
    /// the end. The directory appears with its name only when the copy is whole and would survive a
    /// loss of power. What an interrupted backup leaves beside it ends in `.unfinished-backup`, and
    /// the next backup into the same directory removes it.
    ///
    /// The copy is this replica as of that moment, with its name: opened instead of it, it gets from
    /// its peers what it lacks; opened beside it, both may write. A damaged record is copied as it is.
    ///
    /// # Errors
    ///
    /// [`Error::BackupTarget`] if the directory cannot be used, [`Error::Storage`] if this replica
    /// cannot be read, [`Error::Backup`] if the copy cannot be written, [`Error::Closed`] if the
    /// database is closed meanwhile. There is no copy then, and this replica is not harmed.
    ///
    /// ```
    /// # let directory = tempfile::tempdir()?;
    /// # let db = level_replicator::Options::new().open(directory.path().join("db"))?;
    /// db.put("key", "value")?;
    /// let report = db.backup(directory.path().join("copy"))?;
    /// assert_eq!(report.keys, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn backup(&self, directory: impl AsRef<Path>) -> Result<BackupReport, Error> {
        self.backup_with(directory, |_| ())
    }

    /// As [`Db::backup`], and tells after each mebibyte or so how far it is.
    ///
    /// # Errors
    ///
    /// As [`Db::backup`].
    pub fn backup_with(
        &self,
        directory: impl AsRef<Path>,
        mut progress: impl FnMut(BackupProgress),
    ) -> Result<BackupReport, Error> {
        let started = Instant::now();
        self.check_open()?;
        let target = Target::prepare(directory.as_ref())?;
        let snapshot = self.storage().snapshot();

        let options = FjallOptions {
            cache_bytes: CACHE_BYTES,
        };
        let opened = FjallStorage::create_anew(&target.unfinished, &options);
        // Dropped after the copy, whose files it removes if they did not get their name.
        let mut unfinished = Unfinished(Some(target.unfinished.clone()));
        let copy = match opened {
            Err(error @ (OpenError::Locked { .. } | OpenError::NotADatabase { .. })) => {
                // What is there belongs to somebody else.
                unfinished.0 = None;
                return Err(target.refuse(error));
            }
            opened => opened.map_err(|error| target.failed(error))?,
        };
        let (done, keys) = copy_rows(
            &*snapshot,
            &copy,
            |error| target.failed(error),
            |done| {
                self.check_open()?;
                progress(done);
                Ok(())
            },
        )?;
        drop(snapshot);
        copy.close().map_err(|error| target.failed(error))?;
        drop(copy);

        sync_all(&target.unfinished).map_err(|error| target.failed(error))?;
        target.finish()?;
        unfinished.0 = None;
        Ok(BackupReport {
            keys,
            rows: done.rows,
            bytes: done.bytes,
            elapsed: started.elapsed(),
        })
    }
}

/// Copies all rows of a snapshot in commits of a bounded size; answers also how many have a record.
fn copy_rows(
    snapshot: &dyn Snapshot,
    copy: &dyn Storage,
    failed: impl Fn(StorageError) -> Error,
    mut report: impl FnMut(BackupProgress) -> Result<(), Error>,
) -> Result<(BackupProgress, u64), Error> {
    let mut done = BackupProgress::default();
    let mut keys = 0;
    for table in Table::ALL {
        let mut batch = Batch::default();
        let mut batch_bytes = 0;
        for entry in snapshot.range(table, Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = entry?;
            let row_bytes = key.len() + value.len();
            batch.put(table, key, value);
            batch_bytes += row_bytes;
            done.rows += 1;
            done.bytes += row_bytes as u64;
            keys += u64::from(table == Table::Data);
            if batch_bytes >= COMMIT_BYTES_MAX || batch.changes().len() >= COMMIT_ROWS_MAX {
                copy.commit(std::mem::take(&mut batch)).map_err(&failed)?;
                batch_bytes = 0;
                report(done)?;
            }
        }
        copy.commit(batch).map_err(&failed)?;
    }
    report(done)?;
    Ok((done, keys))
}

/// Where a copy goes.
struct Target {
    path: PathBuf,
    /// Beside it, so that a rename is all that is left to do.
    unfinished: PathBuf,
}

impl Target {
    /// Checks that a directory is missing or empty.
    fn prepare(path: &Path) -> Result<Target, Error> {
        let refuse = |problem: &str| Error::BackupTarget {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        let path = match fs::read_dir(path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(refuse("it is not empty"));
                }
                // A link to a directory cannot be replaced by one.
                fs::canonicalize(path).map_err(io_error("find", path))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(refuse("it is not a directory"));
            }
            Err(error) => return Err(io_error("list", path)(error)),
        };
        let Some(name) = path.file_name() else {
            return Err(refuse("it has no name of its own"));
        };
        let mut name = name.to_owned();
        name.push(UNFINISHED);
        let unfinished = path.with_file_name(name);
        Ok(Target { path, unfinished })
    }

    /// Gives the copy its name, which lasts.
    fn finish(&self) -> Result<(), Error> {
        // Only Unix replaces an empty directory.
        #[cfg(not(unix))]
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("replace", &self.path)(error));
            }
            _ => {}
        }
        fs::rename(&self.unfinished, &self.path)
            .map_err(io_error("rename a finished backup to", &self.path))?;
        Ok(sync_parent(&self.path)?)
    }

    /// Why nothing can be made beside the target.
    fn refuse(&self, error: OpenError) -> Error {
        let problem = match error {
            OpenError::Locked { .. } => "another backup into it is running".to_owned(),
            other => other.to_string(),
        };
        Error::BackupTarget {
            path: self.path.clone(),
            problem,
        }
    }

    fn failed(&self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Backup {
            path: self.path.clone(),
            source: Box::new(source),
        }
    }
}

/// Removes a copy that did not get its name.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_dir_all(path)
        {
            tracing::warn!(%error, path = %path.display(), "cannot remove an unfinished backup");
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

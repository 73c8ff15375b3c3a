//! The directory of a database: who may use it, which format it has, and where the engine's files are.
//!
//! ```text
//! LOCK      locked by the operating system while the database is open; what it contains says nothing
//! FORMAT    "level-replicator 1", and on the next line the version of the crate that created it
//! engine/   the engine's files
//! ```
//!
//! The rule: a crash at any point of the creation leaves a directory that opens. So the engine grows
//! in `engine.new`, then `FORMAT` appears, then `engine.new` becomes `engine`: without `FORMAT`
//! nothing was ever stored, and with it one of the two is whole.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use super::inspect::{Damage, inspect};
use super::{FjallOptions, WORKER_THREADS, contain, describe};

const LOCK: &str = "LOCK";
const FORMAT: &str = "FORMAT";
const FORMAT_NEW: &str = "FORMAT.new";
const ENGINE: &str = "engine";
const ENGINE_NEW: &str = "engine.new";

/// File systems put this into their root, which is a good place for a database otherwise.
const LOST_AND_FOUND: &str = "lost+found";

/// What a directory may hold that has no `FORMAT`: the remains of a creation that was cut short.
const BEFORE_FORMAT: [&str; 4] = [LOCK, FORMAT_NEW, ENGINE_NEW, LOST_AND_FOUND];

const MAGIC: &str = "level-replicator ";
const FORMAT_NUMBER: u32 = 1;

/// Two short lines fit well within it.
const FORMAT_LEN_MAX: u64 = 256;

const KEYSPACE: &str = "replica";

/// A database could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Someone else has it open, perhaps in this process.
    #[error(
        "{} is in use by another process, or was opened before in this one: close it there, \
         or choose another directory",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },

    /// It was written by a later version of this software.
    #[error(
        "{} has format {found}, written by version {written_by}; this version reads formats up to \
         {supported}: use version {written_by} or later",
        path.display()
    )]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// The number of its format.
        found: u32,
        /// The highest number this version reads.
        supported: u32,
        /// The version that created it.
        written_by: String,
    },

    /// What is there is not a database of ours, or no longer a whole one.
    #[error("{} is not a database: {reason}; {cure}", path.display())]
    NotADatabase {
        /// The directory.
        path: PathBuf,
        /// What was found.
        reason: String,
        /// What can be done.
        cure: &'static str,
    },

    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as "create".
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// The engine's files are damaged. They were left as they are.
    #[error("database {} is damaged: {}: {problem}; {RESTORE}", path.display(), file.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// The file, or the directory of the engine's files if it is not known which.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// The engine cannot read its files.
    #[error(
        "the engine cannot open {}: {}; if the cause is not a full disk or missing rights, {RESTORE}",
        path.display(),
        describe(source)
    )]
    Engine {
        /// The directory of the engine's files.
        path: PathBuf,
        /// What the engine said.
        source: Box<fjall::Error>,
    },
}

const CHOOSE_ANOTHER: &str = "choose another directory, or one that is empty or does not exist yet";
pub(crate) const RESTORE: &str = "restore the whole directory from a backup, or move it away and \
     let its peers fill a new one: docs/recovery.md tells how";

/// The engine, running.
pub(super) struct Engine {
    pub(super) directory: PathBuf,
    pub(super) database: Database,
    pub(super) keyspace: Keyspace,
}

/// Keeps others out of a directory until it is dropped.
pub(super) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process being started by another thread may hold a copy.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "cannot unlock a database; its lock ends when the file is closed");
        }
    }
}

/// A directory that is locked, and holds a database or may come to hold one.
pub(super) struct DataDirectory {
    path: PathBuf,
    lock: Lock,
}

impl DataDirectory {
    /// Creates the directory if need be, and locks it.
    pub(super) fn lock(path: &Path) -> Result<DataDirectory, OpenError> {
        create_directory(path)?;

        let lock_path = path.join(LOCK);
        let is_locked_before = lock_path
            .try_exists()
            .map_err(io_error("find", &lock_path))?;
        if !is_locked_before {
            // Not even a lock is put into a directory that belongs to something else.
            Contents::of(path)?;
        }

        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.to_owned();
                return Err(OpenError::Locked { path });
            }
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
        }

        Ok(DataDirectory {
            path: path.to_owned(),
            lock: Lock { file },
        })
    }

    /// Opens the engine, first creating what is not there yet.
    pub(super) fn open(self, options: &FjallOptions) -> Result<(Lock, Engine), OpenError> {
        match Contents::of(&self.path)? {
            Contents::Nothing => {
                sync_parent(&self.path)?;
                self.create_engine(options)?;
                self.write_format()?;
                self.finish_engine()?;
            }
            Contents::Unfinished => self.finish_engine()?,
            Contents::Database => {}
        }
        let engine = self.path.join(ENGINE);
        inspect(&engine).map_err(|damage| self.damaged(damage))?;
        let engine = contain(|| open_engine(&engine, options)).unwrap_or_else(|panic| {
            Err(self.damaged(Damage {
                file: engine.clone(),
                problem: format!("the engine gave up ({panic})"),
            }))
        })?;
        Ok((self.lock, engine))
    }

    fn damaged(&self, damage: Damage) -> OpenError {
        OpenError::Damaged {
            path: self.path.clone(),
            file: damage.file,
            problem: damage.problem,
        }
    }

    /// Removes a database, FORMAT last: without it the rest is taken for the remains of a creation.
    pub(super) fn clear(&self) -> Result<(), OpenError> {
        for name in [ENGINE, ENGINE_NEW] {
            let path = self.path.join(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("remove", &path)(error));
                }
                _ => {}
            }
        }
        let path = self.path.join(FORMAT);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io_error("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn create_engine(&self, options: &FjallOptions) -> Result<(), OpenError> {
        let path = self.path.join(ENGINE_NEW);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("remove", &path)(error));
            }
            _ => {}
        }
        open_engine(&path, options).map(drop)
    }

    fn write_format(&self) -> Result<(), OpenError> {
        let path = self.path.join(FORMAT_NEW);
        let text = format!("{MAGIC}{FORMAT_NUMBER}\n{}\n", env!("CARGO_PKG_VERSION"));
        File::create(&path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(io_error("write", &path))?;

        self.rename(FORMAT_NEW, FORMAT)
    }

    fn finish_engine(&self) -> Result<(), OpenError> {
        self.rename(ENGINE_NEW, ENGINE)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), OpenError> {
        let from = self.path.join(from);
        fs::rename(&from, self.path.join(to)).map_err(io_error("rename", &from))?;
        sync_directory(&self.path)
    }
}

/// What a directory holds.
enum Contents {
    /// Nothing, or the remains of a creation before anything could be stored.
    Nothing,
    /// An engine that is whole but not yet in its place.
    Unfinished,
    /// A database.
    Database,
}

impl Contents {
    fn of(path: &Path) -> Result<Contents, OpenError> {
        let names = fs::read_dir(path)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.file_name()))
                    .collect::<io::Result<BTreeSet<OsString>>>()
            })
            .map_err(io_error("list", path))?;
        let holds = |name: &str| names.iter().any(|found| found == name);

        if !holds(FORMAT) {
            let stranger =
                (names.iter()).find(|name| !BEFORE_FORMAT.iter().any(|known| known == name));
            return match stranger {
                None => Ok(Contents::Nothing),
                Some(name) if name == ENGINE => Err(not_a_database(
                    path,
                    "its file FORMAT is missing".to_owned(),
                    RESTORE,
                )),
                Some(name) => {
                    let reason = format!("it holds {} and no file FORMAT", name.display());
                    Err(not_a_database(path, reason, CHOOSE_ANOTHER))
                }
            };
        }

        check_format(path)?;
        if holds(ENGINE) {
            Ok(Contents::Database)
        } else if holds(ENGINE_NEW) {
            Ok(Contents::Unfinished)
        } else {
            let reason = "its directory engine is missing".to_owned();
            Err(not_a_database(path, reason, RESTORE))
        }
    }
}

/// Refuses a `FORMAT` that this version cannot read.
fn check_format(directory: &Path) -> Result<(), OpenError> {
    let path = directory.join(FORMAT);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(FORMAT_LEN_MAX).read_to_end(&mut bytes))
        .map_err(io_error("read", &path))?;

    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let found = (lines.next())
        .and_then(|line| line.strip_prefix(MAGIC))
        .and_then(|number| number.parse::<u32>().ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| {
            let reason = format!("its file FORMAT does not begin with \"{MAGIC}\" and a number");
            not_a_database(directory, reason, RESTORE)
        })?;
    if found <= FORMAT_NUMBER {
        return Ok(());
    }
    Err(OpenError::NewerFormat {
        path: directory.to_owned(),
        found,
        supported: FORMAT_NUMBER,
        // The text may go to a terminal.
        written_by: match lines.next() {
            Some(version) => version.escape_default().to_string(),
            None => "unknown".to_owned(),
        },
    })
}

/// Opens an engine again that was opened just before.
pub(super) fn open_again(path: &Path, options: &FjallOptions) -> Result<Engine, OpenError> {
    contain(|| open_engine(path, options)).unwrap_or_else(|panic| {
        Err(OpenError::Damaged {
            path: path.to_owned(),
            file: path.to_owned(),
            problem: format!("the engine gave up ({panic})"),
        })
    })
}

fn open_engine(path: &Path, options: &FjallOptions) -> Result<Engine, OpenError> {
    let engine_error = |error: fjall::Error| OpenError::Engine {
        path: path.to_owned(),
        source: Box::new(error),
    };
    let database = Database::builder(path)
        .worker_threads(WORKER_THREADS)
        .cache_size(options.block_cache_bytes())
        .open()
        .map_err(engine_error)?;
    let keyspace = database
        .keyspace(KEYSPACE, KeyspaceCreateOptions::default)
        .map_err(engine_error)?;
    Ok(Engine {
        directory: path.to_owned(),
        database,
        keyspace,
    })
}

/// Spares the next open from reading a journal that says nothing the tables do not say.
///
/// The engine itself forgets a journal only when it exceeds 64 MB, and otherwise reads all of it to
/// find nothing. An empty journal is what it leaves of one without a whole batch; without any file it
/// would lose count of its sequence numbers.
pub(super) fn empty_journal(engine: &Path) {
    let emptied = fs::read_dir(engine).and_then(|entries| {
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jnl") {
                let journal = OpenOptions::new().write(true).open(path)?;
                journal.set_len(0)?;
                journal.sync_all()?;
            }
        }
        Ok(())
    });
    if let Err(error) = emptied {
        tracing::warn!(%error, "cannot empty the journal; the next open will take longer");
    }
}

/// Creates a directory and its parents unless it is there.
fn create_directory(path: &Path) -> Result<(), OpenError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => {
            let reason = "it is not a directory".to_owned();
            Err(not_a_database(path, reason, CHOOSE_ANOTHER))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(io_error("create the directory", path))
        }
        Err(error) => Err(io_error("open", path)(error)),
    }
}

/// Makes all files below a directory survive the loss of power, and their entries.
pub(crate) fn sync_all(directory: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(directory).map_err(io_error("list", directory))? {
        let entry = entry.map_err(io_error("list", directory))?;
        let path = entry.path();
        if entry.file_type().map_err(io_error("list", &path))?.is_dir() {
            sync_all(&path)?;
        } else {
            (OpenOptions::new().write(true).open(&path))
                .and_then(|file| file.sync_all())
                .map_err(io_error("sync", &path))?;
        }
    }
    sync_directory(directory)
}

/// Makes the entry of a new directory in its parent survive the loss of power.
pub(crate) fn sync_parent(path: &Path) -> Result<(), OpenError> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    match sync_directory(parent) {
        // One may use a directory whose parent one may not read.
        Err(OpenError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Ok(()),
        outcome => outcome,
    }
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> Result<(), OpenError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", path))
}

/// Elsewhere directories cannot be synced, and need not be.
#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> Result<(), OpenError> {
    Ok(())
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn not_a_database(path: &Path, reason: String, cure: &'static str) -> OpenError {
    OpenError::NotADatabase {
        path: path.to_owned(),
        reason,
        cure,
    }
}

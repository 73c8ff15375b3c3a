//! The border to LevelDB's C interface: the only module that may be unsafe.
//!
//! The rule: every pointer is made, used and freed by one owner here, and an owner holds what its pointer needs: a cursor its
//! snapshot, a snapshot its database. LevelDB may be called from any thread, but a cursor by one at a time, which `&mut` sees to.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;

/// What LevelDB knows by a pointer alone.
macro_rules! opaque {
    ($($name:ident),*) => {
        $(#[repr(C)] struct $name { _private: [u8; 0] })*
    };
}

opaque!(
    Handle,
    Options,
    ReadOptions,
    WriteOptions,
    Batch,
    Iterator,
    Moment,
    Cache,
    FilterPolicy
);

#[link(name = "leveldb")]
unsafe extern "C" {
    fn leveldb_open(o: *const Options, name: *const c_char, error: *mut *mut c_char)
    -> *mut Handle;
    fn leveldb_close(db: *mut Handle);
    fn leveldb_get(
        db: *mut Handle,
        o: *const ReadOptions,
        key: *const c_char,
        key_len: usize,
        value_len: *mut usize,
        error: *mut *mut c_char,
    ) -> *mut c_char;
    fn leveldb_write(
        db: *mut Handle,
        o: *const WriteOptions,
        batch: *mut Batch,
        error: *mut *mut c_char,
    );
    fn leveldb_compact_range(
        db: *mut Handle,
        start: *const c_char,
        start_len: usize,
        limit: *const c_char,
        limit_len: usize,
    );
    fn leveldb_free(memory: *mut c_void);

    fn leveldb_create_snapshot(db: *mut Handle) -> *const Moment;
    fn leveldb_release_snapshot(db: *mut Handle, moment: *const Moment);

    fn leveldb_create_iterator(db: *mut Handle, o: *const ReadOptions) -> *mut Iterator;
    fn leveldb_iter_destroy(i: *mut Iterator);
    fn leveldb_iter_valid(i: *const Iterator) -> c_uchar;
    fn leveldb_iter_seek_to_first(i: *mut Iterator);
    fn leveldb_iter_seek_to_last(i: *mut Iterator);
    fn leveldb_iter_seek(i: *mut Iterator, key: *const c_char, key_len: usize);
    fn leveldb_iter_next(i: *mut Iterator);
    fn leveldb_iter_prev(i: *mut Iterator);
    fn leveldb_iter_key(i: *const Iterator, len: *mut usize) -> *const c_char;
    fn leveldb_iter_value(i: *const Iterator, len: *mut usize) -> *const c_char;
    fn leveldb_iter_get_error(i: *const Iterator, error: *mut *mut c_char);

    fn leveldb_writebatch_create() -> *mut Batch;
    fn leveldb_writebatch_destroy(batch: *mut Batch);
    fn leveldb_writebatch_put(
        batch: *mut Batch,
        key: *const c_char,
        key_len: usize,
        value: *const c_char,
        value_len: usize,
    );
    fn leveldb_writebatch_delete(batch: *mut Batch, key: *const c_char, key_len: usize);

    fn leveldb_options_create() -> *mut Options;
    fn leveldb_options_destroy(o: *mut Options);
    fn leveldb_options_set_create_if_missing(o: *mut Options, on: c_uchar);
    fn leveldb_options_set_paranoid_checks(o: *mut Options, on: c_uchar);
    fn leveldb_options_set_write_buffer_size(o: *mut Options, bytes: usize);
    fn leveldb_options_set_cache(o: *mut Options, cache: *mut Cache);
    fn leveldb_options_set_filter_policy(o: *mut Options, policy: *mut FilterPolicy);
    fn leveldb_cache_create_lru(bytes: usize) -> *mut Cache;
    fn leveldb_cache_destroy(cache: *mut Cache);
    fn leveldb_filterpolicy_create_bloom(bits_per_key: c_int) -> *mut FilterPolicy;
    fn leveldb_filterpolicy_destroy(policy: *mut FilterPolicy);
    fn leveldb_readoptions_create() -> *mut ReadOptions;
    fn leveldb_readoptions_destroy(o: *mut ReadOptions);
    fn leveldb_readoptions_set_verify_checksums(o: *mut ReadOptions, on: c_uchar);
    fn leveldb_readoptions_set_fill_cache(o: *mut ReadOptions, on: c_uchar);
    fn leveldb_readoptions_set_snapshot(o: *mut ReadOptions, moment: *const Moment);
    fn leveldb_writeoptions_create() -> *mut WriteOptions;
    fn leveldb_writeoptions_destroy(o: *mut WriteOptions);
    fn leveldb_writeoptions_set_sync(o: *mut WriteOptions, on: c_uchar);
}

/// What LevelDB said went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NativeError(pub(super) String);

/// How a database is opened.
pub(super) struct Opening {
    pub(super) creates: bool,
    pub(super) cache_bytes: usize,
    pub(super) write_buffer_bytes: usize,
}

/// Bits of a filter that a key costs in a table; with ten, one lookup of an absent key in a hundred reads a block in vain.
const FILTER_BITS_PER_KEY: c_int = 10;

/// An open database.
pub(super) struct Database {
    handle: NonNull<Handle>,
    reading: Reading,
    buffered: NonNull<WriteOptions>,
    synced: NonNull<WriteOptions>,
    // Used by LevelDB until the database is closed.
    _settings: Settings,
}

// SAFETY: LevelDB synchronizes what it does with a database itself, and the options are only read once they are set.
unsafe impl Send for Database {}
// SAFETY: as above.
unsafe impl Sync for Database {}

/// Options of a database with what they point to.
struct Settings {
    options: NonNull<Options>,
    cache: NonNull<Cache>,
    filter: NonNull<FilterPolicy>,
}

impl Settings {
    fn new(opening: &Opening) -> Settings {
        // SAFETY: plain constructors; they abort where memory ends. The cache and the policy are owned here and outlive the
        // options that point to them.
        unsafe {
            let settings = Settings {
                options: made(leveldb_options_create()),
                cache: made(leveldb_cache_create_lru(opening.cache_bytes)),
                filter: made(leveldb_filterpolicy_create_bloom(FILTER_BITS_PER_KEY)),
            };
            let options = settings.options.as_ptr();
            leveldb_options_set_create_if_missing(options, c_uchar::from(opening.creates));
            leveldb_options_set_paranoid_checks(options, 1);
            leveldb_options_set_write_buffer_size(options, opening.write_buffer_bytes);
            leveldb_options_set_cache(options, settings.cache.as_ptr());
            leveldb_options_set_filter_policy(options, settings.filter.as_ptr());
            settings
        }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // SAFETY: made by the matching constructors, freed once; the database is closed by now.
        unsafe {
            leveldb_options_destroy(self.options.as_ptr());
            leveldb_cache_destroy(self.cache.as_ptr());
            leveldb_filterpolicy_destroy(self.filter.as_ptr());
        }
    }
}

/// Options of reads.
struct Reading(NonNull<ReadOptions>);

impl Reading {
    fn new(moment: Option<NonNull<Moment>>, fills_cache: bool) -> Reading {
        // SAFETY: a constructor and setters; whoever gives a moment keeps it longer than these options.
        unsafe {
            let options = made(leveldb_readoptions_create());
            leveldb_readoptions_set_verify_checksums(options.as_ptr(), 1);
            leveldb_readoptions_set_fill_cache(options.as_ptr(), c_uchar::from(fills_cache));
            if let Some(moment) = moment {
                leveldb_readoptions_set_snapshot(options.as_ptr(), moment.as_ptr());
            }
            Reading(options)
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // SAFETY: made by the matching constructor, freed once.
        unsafe { leveldb_readoptions_destroy(self.0.as_ptr()) }
    }
}

impl Database {
    pub(super) fn open(directory: &Path, opening: &Opening) -> Result<Database, NativeError> {
        let name = directory.as_os_str().as_encoded_bytes();
        let name = CString::new(name)
            .map_err(|_| NativeError("its name has a zero byte in it".to_owned()))?;
        let settings = Settings::new(opening);
        // SAFETY: the name ends in a zero byte, and the options live for as long as the database.
        let handle =
            call(|error| unsafe { leveldb_open(settings.options.as_ptr(), name.as_ptr(), error) })?;
        let handle =
            NonNull::new(handle).ok_or_else(|| NativeError("it does not open".to_owned()))?;
        // SAFETY: constructors and setters.
        let (buffered, synced) = unsafe {
            let (buffered, synced) = (
                made(leveldb_writeoptions_create()),
                made(leveldb_writeoptions_create()),
            );
            leveldb_writeoptions_set_sync(synced.as_ptr(), 1);
            (buffered, synced)
        };
        Ok(Database {
            handle,
            reading: Reading::new(None, true),
            buffered,
            synced,
            _settings: settings,
        })
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, NativeError> {
        self.get_as(&self.reading, key)
    }

    fn get_as(&self, reading: &Reading, key: &[u8]) -> Result<Option<Bytes>, NativeError> {
        let mut len = 0;
        // SAFETY: the key is read for its length; the answer is null, or owned by us and as long as `len` says.
        let value = call(|error| unsafe {
            leveldb_get(
                self.handle.as_ptr(),
                reading.0.as_ptr(),
                key.as_ptr().cast(),
                key.len(),
                &mut len,
                error,
            )
        })?;
        let Some(value) = NonNull::new(value) else {
            return Ok(None);
        };
        // SAFETY: as above; copied before it is freed, once.
        unsafe {
            let bytes = Bytes::copy_from_slice(slice(value.as_ptr(), len));
            leveldb_free(value.as_ptr().cast());
            Ok(Some(bytes))
        }
    }

    /// Does all of a batch or nothing; synced, it and everything in the same log survives a loss of power.
    pub(super) fn write(&self, batch: &WriteBatch, is_synced: bool) -> Result<(), NativeError> {
        let options = if is_synced {
            self.synced
        } else {
            self.buffered
        };
        // SAFETY: all three are alive; LevelDB reads the batch and does not keep it.
        call(|error| unsafe {
            leveldb_write(
                self.handle.as_ptr(),
                options.as_ptr(),
                batch.0.as_ptr(),
                error,
            );
        })
    }

    /// Returns when everything written before is in tables, which are always synced, or the attempt failed.
    pub(super) fn flush(&self) {
        // The empty key alone, so that nothing is merged.
        let key = b"";
        // SAFETY: both bounds are read for their length, which is zero.
        unsafe {
            leveldb_compact_range(
                self.handle.as_ptr(),
                key.as_ptr().cast(),
                key.len(),
                key.as_ptr().cast(),
                key.len(),
            );
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: nothing else holds the database any more; each is freed once, and the settings after this.
        unsafe {
            leveldb_close(self.handle.as_ptr());
            leveldb_writeoptions_destroy(self.buffered.as_ptr());
            leveldb_writeoptions_destroy(self.synced.as_ptr());
        }
    }
}

/// Writes that are done as one.
pub(super) struct WriteBatch(NonNull<Batch>);

impl WriteBatch {
    pub(super) fn new() -> WriteBatch {
        // SAFETY: a constructor.
        WriteBatch(unsafe { made(leveldb_writebatch_create()) })
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        // SAFETY: LevelDB copies both, each for its length.
        unsafe {
            leveldb_writebatch_put(
                self.0.as_ptr(),
                key.as_ptr().cast(),
                key.len(),
                value.as_ptr().cast(),
                value.len(),
            );
        }
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        // SAFETY: LevelDB copies the key for its length.
        unsafe { leveldb_writebatch_delete(self.0.as_ptr(), key.as_ptr().cast(), key.len()) }
    }
}

impl Drop for WriteBatch {
    fn drop(&mut self) {
        // SAFETY: made by the matching constructor, freed once.
        unsafe { leveldb_writebatch_destroy(self.0.as_ptr()) }
    }
}

/// The database at one moment.
pub(super) struct NativeSnapshot {
    moment: NonNull<Moment>,
    lookups: Reading,
    walks: Reading,
    database: Arc<Database>,
}

// SAFETY: a snapshot is a number that LevelDB keeps; it and the options are only read.
unsafe impl Send for NativeSnapshot {}
// SAFETY: as above.
unsafe impl Sync for NativeSnapshot {}

impl NativeSnapshot {
    pub(super) fn new(database: Arc<Database>) -> NativeSnapshot {
        // SAFETY: the database is open; the cast only takes `const` away, and nothing is written through it.
        let moment = unsafe { made(leveldb_create_snapshot(database.handle.as_ptr()).cast_mut()) };
        NativeSnapshot {
            moment,
            lookups: Reading::new(Some(moment), true),
            // A walk reads much once: it must not push out what is looked up often.
            walks: Reading::new(Some(moment), false),
            database,
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, NativeError> {
        self.database.get_as(&self.lookups, key)
    }
}

impl Drop for NativeSnapshot {
    fn drop(&mut self) {
        // SAFETY: of this database, released once; no cursor is left, for each holds the snapshot.
        unsafe {
            leveldb_release_snapshot(self.database.handle.as_ptr(), self.moment.as_ptr());
        }
    }
}

/// A place in a snapshot.
pub(super) struct Cursor {
    iterator: NonNull<Iterator>,
    _snapshot: Arc<NativeSnapshot>,
}

// SAFETY: whoever has the cursor alone may use it, on whichever thread.
unsafe impl Send for Cursor {}

impl Cursor {
    pub(super) fn new(snapshot: &Arc<NativeSnapshot>) -> Cursor {
        let database = snapshot.database.handle.as_ptr();
        // SAFETY: the database and the options live for as long as the snapshot, which the cursor holds.
        let iterator =
            unsafe { made(leveldb_create_iterator(database, snapshot.walks.0.as_ptr())) };
        Cursor {
            iterator,
            _snapshot: Arc::clone(snapshot),
        }
    }

    pub(super) fn seek_to_first(&mut self) {
        // SAFETY: the iterator is alive.
        unsafe { leveldb_iter_seek_to_first(self.iterator.as_ptr()) }
    }

    pub(super) fn seek_to_last(&mut self) {
        // SAFETY: the iterator is alive.
        unsafe { leveldb_iter_seek_to_last(self.iterator.as_ptr()) }
    }

    /// Goes to the first key that is not less.
    pub(super) fn seek(&mut self, key: &[u8]) {
        // SAFETY: the key is read for its length.
        unsafe { leveldb_iter_seek(self.iterator.as_ptr(), key.as_ptr().cast(), key.len()) }
    }

    /// Goes on by one, unless it has ended.
    pub(super) fn advance(&mut self) {
        if self.is_valid() {
            // SAFETY: only a valid iterator may be moved.
            unsafe { leveldb_iter_next(self.iterator.as_ptr()) }
        }
    }

    /// Goes back by one, unless it has ended.
    pub(super) fn retreat(&mut self) {
        if self.is_valid() {
            // SAFETY: only a valid iterator may be moved.
            unsafe { leveldb_iter_prev(self.iterator.as_ptr()) }
        }
    }

    fn is_valid(&self) -> bool {
        // SAFETY: the iterator is alive.
        unsafe { leveldb_iter_valid(self.iterator.as_ptr()) != 0 }
    }

    /// Where it is, unless it has come to an end.
    pub(super) fn key(&self) -> Option<&[u8]> {
        let mut len = 0;
        // SAFETY: a valid iterator has a key, which stays until it is moved, and that takes `&mut`.
        self.is_valid()
            .then(|| unsafe { slice(leveldb_iter_key(self.iterator.as_ptr(), &mut len), len) })
    }

    /// What is there, unless it has come to an end.
    pub(super) fn value(&self) -> Option<&[u8]> {
        let mut len = 0;
        // SAFETY: as for the key.
        self.is_valid()
            .then(|| unsafe { slice(leveldb_iter_value(self.iterator.as_ptr(), &mut len), len) })
    }

    /// Whether the end it has come to is an error.
    pub(super) fn check(&self) -> Result<(), NativeError> {
        // SAFETY: the iterator is alive.
        call(|error| unsafe { leveldb_iter_get_error(self.iterator.as_ptr(), error) })
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        // SAFETY: destroyed once, before the snapshot that it holds.
        unsafe { leveldb_iter_destroy(self.iterator.as_ptr()) }
    }
}

/// A pointer that a constructor answered.
fn made<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).expect("LevelDB aborts where memory ends")
}

/// Bytes of LevelDB's.
///
/// # Safety
///
/// They are `len` many, and stay for as long as the caller says.
unsafe fn slice<'a>(start: *const c_char, len: usize) -> &'a [u8] {
    // Of nothing, LevelDB may answer a null pointer.
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(start.cast(), len) }
}

/// Calls what may leave an error behind, and takes that.
fn call<T>(run: impl FnOnce(*mut *mut c_char) -> T) -> Result<T, NativeError> {
    let mut error: *mut c_char = ptr::null_mut();
    let outcome = run(&mut error);
    if error.is_null() {
        return Ok(outcome);
    }
    // SAFETY: LevelDB left a text that ends in a zero byte and is ours; it is copied before it is freed, once.
    unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        leveldb_free(error.cast());
        Err(NativeError(text))
    }
}

//! The database as a program holds it.

use std::collections::BTreeSet;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::{Dot, Now, ReplicaId};
use level_replicator_core::limits::{BATCH_BYTES_MAX, BATCH_OPS_MAX, KEY_BYTES_MAX};
use level_replicator_core::members::Member;
use level_replicator_core::record::{Content, Key, Op, Record, Value};
use level_replicator_core::replica::{FirstSync, Replica};
use level_replicator_core::resolver::Sibling;
use level_replicator_core::state::{Written, scan_tally};
use level_replicator_core::storage::{
    Snapshot as Tables, Storage, Table, bound_as_slice, prefix_bounds,
};

use crate::discovery::source::{self, SourceDesk, SourceSlot};
use crate::driver;
use crate::error::Error;
use crate::event_hub::Events;
use crate::options::{Durability, Options};
use crate::put_options::PutOptions;
use crate::range::{Conflicts, Entry, Range, View};
use crate::shared::Shared;
use crate::status::{MemberStatus, PeerStatus, ReclaimStatus, Status, SyncState};
use crate::system_clock::{SystemClock, deadline, wall_time};
use crate::transaction::Transaction;

/// How often a transaction is tried before it gives up.
const TRANSACTION_ATTEMPTS: u32 = 1_000;

/// How long [`Db::pause`] and [`Db::close`] wait for conversations to end.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(8);

/// How often waiting calls remind the peers.
const REMIND_INTERVAL: Duration = Duration::from_millis(50);

/// Unsorted data beyond which the engine's background work is taken to be stuck, in bytes.
const WRITE_BUFFER_ALARM: u64 = 512 << 20;
const JOURNAL_ALARM: u64 = 1 << 30;

/// An ordered key-value store that keeps itself equal to its peers.
///
/// Handles are cheap to clone and may be used by any number of threads, inside or outside of async
/// runtimes. Calls read and write this replica alone and never wait for the network, except that
/// the first write may wait for one conversation (see [`Options::first_sync_timeout`]).
///
/// It is no place for counters or ledgers without a merge of their own: of two concurrent writes
/// of one key, readers see one.
///
/// ```
/// use level_replicator::Options;
///
/// let directory = tempfile::tempdir()?;
/// let db = Options::new().open(directory.path())?;
///
/// db.put("user/1", "Ada")?;
/// db.put("user/2", "Grace")?;
/// let names: Vec<_> = db.prefix("user/").map(|entry| entry.map(|(_, name)| name)).collect::<Result<_, _>>()?;
/// assert_eq!(names, ["Ada", "Grace"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Db {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
}

/// Closes the database when the last [`Db`] is gone.
struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    sources: Arc<SourceDesk>,
}

impl Db {
    pub(crate) fn open(options: Options, storage: Arc<dyn Storage>) -> Result<Db, Error> {
        let clock = SystemClock::start();
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(Error::Random)?;
        let seed = u64::from_be_bytes(seed);
        let mut config = options.config.clone();
        let listener = options.listen.as_ref().map(driver::listen).transpose()?;
        let listen = listener.as_ref().map(|(_, address)| address.clone());
        config.advertised = config.advertised.or_else(|| listen.clone());

        let mut replica = Replica::open(storage, config, seed, clock.now())?;
        for peer in &options.peers {
            replica.add_peer(clock.now(), peer.clone());
        }
        let shared = Arc::new(Shared::new(
            replica,
            options.resolver.clone(),
            options.durability,
            clock,
            listen,
        ));
        let handle = Arc::new(Handle {
            shared: Arc::clone(&shared),
            threads: Mutex::new(Vec::new()),
            sources: Arc::default(),
        });
        let listener = listener.map(|(listener, _)| listener);
        for slot in options.sources.clone() {
            handle.ask_source(slot)?;
        }
        handle.start("level-replicator", {
            let shared = Arc::clone(&shared);
            move || driver::run(&shared, &options, listener)
        })?;
        Ok(Db { shared, handle })
    }

    /// Writes one key.
    ///
    /// The write is visible to [`Db::get`] when this returns, and survives the end of the process;
    /// with [`Durability::Sync`], a loss of power too. Peers learn of it later. The answer is the
    /// write's name, for [`Db::wait_replicated`].
    ///
    /// # Errors
    ///
    /// [`Error::EmptyKey`] and [`Error::TooLarge`] for what cannot be stored, [`Error::Storage`] if
    /// the engine fails; nothing was changed then.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Dot, Error> {
        let key = Bytes::copy_from_slice(key.as_ref());
        let value = Bytes::copy_from_slice(value.as_ref());
        let written = self.write(&[Op::Put(key, value)])?;
        Ok(written.last.expect("a put always writes"))
    }

    /// The same as [`Db::put`], with options: such as when the value expires.
    ///
    /// # Errors
    ///
    /// As [`Db::put`].
    pub fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: &PutOptions,
    ) -> Result<Dot, Error> {
        let written = self.write(&[options.op(key.as_ref(), value.as_ref())])?;
        Ok(written.last.expect("a put always writes"))
    }

    /// What readers see of a key: its value, or of several concurrent ones what the resolver says.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if the record is damaged: it is never served.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>, Error> {
        self.shared.check_open()?;
        let key = key.as_ref();
        check_key(key)?;
        match self.shared.storage.get(Table::Data, key)? {
            None => Ok(None),
            Some(row) => self.view().value(&Bytes::copy_from_slice(key), row),
        }
    }

    /// The same as [`Db::get`], with the moment at which the value expires.
    ///
    /// # Errors
    ///
    /// As [`Db::get`].
    pub fn entry(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry>, Error> {
        self.shared.check_open()?;
        let key = Bytes::copy_from_slice(key.as_ref());
        check_key(&key)?;
        match self.shared.storage.get(Table::Data, &key)? {
            None => Ok(None),
            Some(row) => self.view().entry(&key, row),
        }
    }

    /// Removes one key: everything that this replica knows of it.
    ///
    /// A value written elsewhere that this replica has not heard of survives. The answer is `None`
    /// if there was nothing to remove; then nothing is written. A value that has expired and is still
    /// stored is something.
    ///
    /// # Errors
    ///
    /// As [`Db::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<Option<Dot>, Error> {
        let key = Bytes::copy_from_slice(key.as_ref());
        Ok(self.write(&[Op::Delete(key)])?.last)
    }

    /// Begins a batch of writes that are committed as one.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            db: self,
            ops: Vec::new(),
        }
    }

    /// Reads a key, computes, and writes it, as one: no other write of this replica comes between.
    ///
    /// The closure gets what readers see, and answers the new value; `None` deletes. It runs again
    /// if another write came between, so it should do nothing else. The answer is the write's name;
    /// `None` if the key was absent and stays so.
    ///
    /// # Errors
    ///
    /// [`Error::Contended`] if other writers were faster a thousand times; else as [`Db::put`].
    ///
    /// ```
    /// # let directory = tempfile::tempdir()?;
    /// # let db = level_replicator::Options::new().open(directory.path())?;
    /// db.put("visits", "1")?;
    /// db.update("visits", |old| {
    ///     let visits = old.and_then(|old| std::str::from_utf8(old).ok()?.parse().ok());
    ///     Some((visits.unwrap_or(0) + 1u64).to_string())
    /// })?;
    /// assert_eq!(db.get("visits")?.as_deref(), Some(&b"2"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn update<V: AsRef<[u8]>>(
        &self,
        key: impl AsRef<[u8]>,
        mut change: impl FnMut(Option<&[u8]>) -> Option<V>,
    ) -> Result<Option<Dot>, Error> {
        let key = key.as_ref();
        let (_, dot) = self.run_transaction(|transaction| {
            let old = transaction.get(key)?;
            match change(old.as_deref()) {
                Some(new) => transaction.put(key, new),
                None => transaction.delete(key),
            }
            Ok(())
        })?;
        Ok(dot)
    }

    /// Runs a closure that reads and writes any keys as one: it sees one moment, and its writes are
    /// committed together only if nothing that it read has changed since. Else it runs again.
    ///
    /// The closure gives up, and nothing is written, if it answers an error such as
    /// [`Error::aborted`].
    ///
    /// # Errors
    ///
    /// The closure's own; [`Error::Contended`] if other writers were faster a thousand times; else
    /// as [`Db::put`].
    ///
    /// ```
    /// # let directory = tempfile::tempdir()?;
    /// # let db = level_replicator::Options::new().open(directory.path())?;
    /// db.put("draft", "text")?;
    /// db.transact(|t| {
    ///     if let Some(text) = t.get("draft")? {
    ///         t.put("published", text);
    ///         t.delete("draft");
    ///     }
    ///     Ok(())
    /// })?;
    /// assert_eq!(db.get("published")?.as_deref(), Some(&b"text"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn transact<T>(
        &self,
        run: impl FnMut(&mut Transaction) -> Result<T, Error>,
    ) -> Result<T, Error> {
        Ok(self.run_transaction(run)?.0)
    }

    /// Keys and values in a range of keys, in the order of their bytes, at one moment.
    ///
    /// For all keys see [`Db::iter`].
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Range {
        self.snapshot().range(range)
    }

    /// Keys and values of all keys that begin with a prefix, in order, at one moment.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        self.snapshot().prefix(prefix)
    }

    /// All keys and values, in order, at one moment.
    pub fn iter(&self) -> Range {
        self.snapshot().iter()
    }

    /// A view of one moment, for several reads that belong together.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            tables: self.shared.storage.snapshot(),
            view: View {
                shared: Arc::clone(&self.shared),
                moment: Some(self.shared.now_stamp()),
            },
        }
    }

    /// The concurrent values of a key in canonical order: by stamp, then by dot. One, if there is
    /// no conflict; none, if the key has no value.
    ///
    /// # Errors
    ///
    /// As [`Db::get`].
    pub fn siblings(&self, key: impl AsRef<[u8]>) -> Result<Vec<Sibling>, Error> {
        self.shared.check_open()?;
        let key = Bytes::copy_from_slice(key.as_ref());
        check_key(&key)?;
        match self.shared.storage.get(Table::Data, &key)? {
            None => Ok(Vec::new()),
            Some(row) => self.view().siblings(&key, row),
        }
    }

    /// The keys that have two or more concurrent values, with them. Reads through all data.
    pub fn conflicts(&self) -> Conflicts {
        let tables = self.shared.storage.snapshot();
        Conflicts {
            entries: tables.range(Table::Data, Bound::Unbounded, Bound::Unbounded),
            view: self.view(),
        }
    }

    /// Ends a conflict: writes a value that replaces all concurrent ones known here.
    ///
    /// Nothing is written, and the answer is `None`, if all of them equal the value already: so two
    /// replicas that resolve alike do not answer each other for ever.
    ///
    /// # Errors
    ///
    /// As [`Db::put`].
    pub fn resolve(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Option<Dot>, Error> {
        let key = Bytes::copy_from_slice(key.as_ref());
        let value = Bytes::copy_from_slice(value.as_ref());
        let agrees = |record: &Record| {
            let wanted = Content::Put(value.clone());
            record.puts().next().is_some() && record.puts().all(|put| put.content == wanted)
        };
        let op = [Op::Put(key.clone(), value.clone())];
        let written =
            self.write_unless(&op, |replica| Ok(agrees(&replica.state().record(&key)?)))?;
        Ok(written.and_then(|written| written.last))
    }

    /// Tells of everything that happens from now on; see [`Events`].
    pub fn events(&self) -> Events {
        let events = self.shared.events.subscribe();
        self.shared.replica().state_mut().observed = true;
        events
    }

    /// Tells of everything but changes of keys; conflicts are told. It costs writers nothing.
    pub fn events_but_changes(&self) -> Events {
        let events = self.shared.events.subscribe_but_changes();
        self.shared.replica().state_mut().observes_conflicts = true;
        events
    }

    /// Holds one complete conversation with every known peer: when it returns, this replica knows
    /// what they knew, and they know what it knew, when it was called.
    ///
    /// # Errors
    ///
    /// [`Error::NotReached`] with the addresses that refused or did not answer in time.
    pub fn sync_now(&self, timeout: Duration) -> Result<(), Error> {
        self.shared.check_open()?;
        let mut replica = self.shared.replica();
        let id = replica.request_sync(self.shared.clock.now());
        self.shared.wake.notify_one();
        let deadline = deadline(timeout);
        loop {
            if let Some(addresses) = replica.sync_result(id) {
                return not_reached(addresses);
            }
            if Instant::now() >= deadline {
                return not_reached(replica.abandon_sync(id));
            }
            self.shared.check_open()?;
            replica = self.wait_for_progress(replica, deadline);
        }
    }

    /// Waits until a write is known to this many other replicas, as last heard over open links.
    ///
    /// # Errors
    ///
    /// [`Error::NotReplicated`] if that took too long. The write stays and goes on spreading.
    pub fn wait_replicated(
        &self,
        dot: Dot,
        replicas: usize,
        timeout: Duration,
    ) -> Result<(), Error> {
        self.shared.check_open()?;
        let mut replica = self.shared.replica();
        let deadline = deadline(timeout);
        let mut remind = Instant::now();
        let mut others = BTreeSet::new();
        loop {
            others.append(&mut replica.replicated(dot));
            let reached = others.len();
            if reached >= replicas {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::NotReplicated {
                    reached,
                    wanted: replicas,
                });
            }
            self.shared.check_open()?;
            if now >= remind {
                replica.call_reachable(self.shared.clock.now());
                self.shared.wake.notify_one();
                remind = now + REMIND_INTERVAL;
            }
            replica = self.wait_for_progress(replica, deadline.min(remind));
        }
    }

    /// The latest write of this open. Who has it, as [`Db::wait_replicated`] counts, has all earlier ones.
    pub fn last_dot(&self) -> Option<Dot> {
        let replica = self.shared.replica();
        let writer = replica.state().current_writer()?;
        let seq = replica.state().clock().get(writer)?.base();
        (seq > 0).then_some(Dot { writer, seq })
    }

    /// The other replicas that are known to have a write, as last heard over open links; and reminds the
    /// peers now and then. For those who cannot wait in [`Db::wait_replicated`]: ask again, and put the
    /// answers together.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn replicas_with(&self, dot: Dot) -> Result<BTreeSet<ReplicaId>, Error> {
        self.shared.check_open()?;
        let now = self.shared.clock.now();
        let mut replica = self.shared.replica();
        let others = replica.replicated(dot);
        let due_us = self.shared.remind_us.load(Ordering::Relaxed);
        if now.steady_us >= due_us {
            let next_us = now.plus(REMIND_INTERVAL);
            self.shared.remind_us.store(next_us, Ordering::Relaxed);
            replica.call_reachable(now);
            self.shared.wake.notify_one();
        }
        Ok(others)
    }

    /// Adds the address of a peer, `host:port`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] if the text is no address.
    pub fn add_peer(&self, address: impl AsRef<str>) -> Result<(), Error> {
        self.shared.check_open()?;
        let address: Address = address.as_ref().parse()?;
        self.shared
            .replica()
            .add_peer(self.shared.clock.now(), address);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Removes the address of a peer, and ends the conversation with it. Other peers may tell of it again.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] if the text is no address.
    pub fn remove_peer(&self, address: impl AsRef<str>) -> Result<(), Error> {
        self.shared.check_open()?;
        let address: Address = address.as_ref().parse()?;
        self.shared
            .replica()
            .remove_peer(self.shared.clock.now(), &address);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Ends every conversation and accepts and begins none, until [`Db::resume`] or the next open.
    /// Returns when none remains. Reads and writes go on.
    ///
    /// # Errors
    ///
    /// [`Error::StillTalking`] if one did not end within some seconds.
    pub fn pause(&self) -> Result<(), Error> {
        self.shared.check_open()?;
        let mut replica = self.shared.replica();
        replica.pause(self.shared.clock.now());
        self.shared.wake.notify_one();
        let deadline = Instant::now() + HANG_UP_TIMEOUT;
        loop {
            let open = self.shared.links.load(Ordering::Acquire);
            if open == 0 && !replica.has_output() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::StillTalking { open });
            }
            replica = self.wait_for_progress(replica, deadline);
        }
    }

    /// Talks again after [`Db::pause`].
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn resume(&self) -> Result<(), Error> {
        self.shared.check_open()?;
        self.shared.replica().resume(self.shared.clock.now());
        self.shared.wake.notify_one();
        Ok(())
    }

    /// How the database is doing.
    pub fn status(&self) -> Status {
        let now = self.shared.clock.now();
        let storage = self.shared.storage.stats();
        let replica = self.shared.replica();
        let state = replica.state();
        let tally = state.tally();
        Status {
            replica: state.replica(),
            writer: state.current_writer(),
            cluster: replica.config().cluster.clone(),
            listen: self.shared.listen.clone(),
            multicast: self.shared.multicast.load(Ordering::Relaxed),
            paused: replica.is_paused(),
            sync_state: if !state.wanted().is_empty() {
                SyncState::Healing
            } else if state.is_catching_up() {
                SyncState::CatchingUp
            } else {
                SyncState::Settled
            },
            keys: tally.map(|tally| tally.keys),
            conflicts: tally.map(|tally| tally.conflicts),
            deletes: tally.map(|tally| tally.deletes),
            log_entries: tally.map(|tally| tally.log),
            digest: tally.map(|tally| tally.digest),
            agreed_at: replica.agreed_us().map(wall_time),
            verified_at: replica.verified_us().map(wall_time),
            reclaim: ReclaimStatus {
                floor: state.floor().as_ref().clone(),
                epoch: state.epoch().number,
                epoch_open: state.is_epoch_open(),
                epoch_age: Duration::from_micros(replica.epoch_age_us(now)),
                held_back_by: held_back_by(&replica, now),
                reclaiming: state.is_reclaiming(),
            },
            promotions: state.promotions(),
            clock: state.clock().as_ref().clone(),
            writes_per_second: replica.writes_per_second(now),
            traffic: replica.traffic(),
            links: self.shared.links.load(Ordering::Acquire),
            peers: peer_statuses(&replica, now.steady_us),
            changes: state.feed_end(),
            storage,
            storage_alarm: storage
                .write_buffer_bytes
                .is_some_and(|size| size > WRITE_BUFFER_ALARM)
                || storage
                    .journal_bytes
                    .is_some_and(|size| size > JOURNAL_ALARM),
        }
    }

    /// How every known address is doing.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let now = self.shared.clock.now();
        peer_statuses(&self.shared.replica(), now.steady_us)
    }

    /// Every replica that ever took part, as far as it is known here.
    pub fn members(&self) -> Vec<MemberStatus> {
        let replica = self.shared.replica();
        let state = replica.state();
        let status = |(id, member): (ReplicaId, Member)| {
            let life = state.life(id);
            MemberStatus {
                replica: id,
                is_self: id == state.replica(),
                retired: member.retired,
                excluded: life.excluded && id != state.replica(),
                admitted_by: member.admitted_by,
                seen_at: (life.seen_wall_us > 0).then(|| wall_time(life.seen_wall_us)),
            }
        };
        state.members().iter().map(status).collect()
    }

    /// Sends a replica away for good: nothing waits for it any more before deletes are reclaimed.
    ///
    /// Nothing that others know of it is lost. Should it come back, it takes a new name, is healed, and
    /// what it wrote meanwhile survives. Answers whether that is news.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMember`] if no such replica is known, or it is this one; [`Error::Storage`] if it
    /// could not be written down. Nothing was changed then.
    pub fn retire(&self, replica: ReplicaId) -> Result<bool, Error> {
        self.shared.check_open()?;
        let mut core = self.shared.replica();
        let is_known = core.state().members().get(replica).is_some();
        if !is_known || core.state().replica() == replica {
            return Err(Error::UnknownMember { replica });
        }
        let news = core.retire(self.shared.clock.now(), replica)?;
        drop(core);
        self.shared.wake.notify_one();
        Ok(news)
    }

    /// The fingerprint of all keys and values, equal on replicas that hold the same.
    ///
    /// After an unclean end it waits until the data has been read through once.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]; [`Error::Corrupt`] if the data cannot be read through.
    pub fn digest(&self) -> Result<u128, Error> {
        self.shared.check_open()?;
        let replica = self.shared.replica();
        if let Some(tally) = replica.state().tally() {
            return Ok(tally.digest);
        }
        let snapshot = self.shared.storage.snapshot();
        let writers = Arc::clone(replica.state().writers());
        drop(replica);
        let open = || self.shared.check_open().is_ok();
        let tally = scan_tally(&*snapshot, &writers, open)?;
        Ok(tally.ok_or(Error::Closed)?.digest)
    }

    /// Closes the database for all its handles: ends the conversations, frees the port, flushes.
    ///
    /// The last handle that is dropped does the same but cannot tell of errors. Snapshots and
    /// iterators that still live keep the directory locked until they are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the engine could not flush; [`Error::Closed`] if it was closed before.
    pub fn close(&self) -> Result<(), Error> {
        self.handle.close()
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        self.shared.check_open()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.shared.storage
    }

    fn view(&self) -> View {
        View {
            shared: Arc::clone(&self.shared),
            moment: None,
        }
    }

    fn write(&self, ops: &[Op]) -> Result<Written, Error> {
        let written = self.write_unless(ops, |_| Ok(false))?;
        Ok(written.unwrap_or_default())
    }

    /// Writes operations as one unless a check, made under the same lock, answers true.
    fn write_unless(
        &self,
        ops: &[Op],
        skip: impl FnOnce(&Replica) -> Result<bool, Error>,
    ) -> Result<Option<Written>, Error> {
        self.shared.check_open()?;
        self.check_ops(ops)?;
        if ops.is_empty() {
            return Ok(None);
        }
        self.attempt_first_sync();

        let mut replica = self.shared.replica();
        // Asked again under the lock: nothing may be written after the state was closed.
        self.shared.check_open()?;
        if skip(&replica)? {
            return Ok(None);
        }
        let has_company = replica.has_company();
        let due_before = (!has_company).then(|| replica.next_timeout());
        let written = replica.write(self.shared.clock.now(), ops)?;
        let commit = replica.state().commits();
        self.shared.note_commits(&replica);
        // Alone too there is something to do in a while: to reclaim what was written.
        let is_due_anew = due_before.is_some_and(|before| replica.next_timeout() != before);
        let wakes = has_company || replica.has_output() || is_due_anew;
        drop(replica);
        if wakes {
            self.shared.wake.notify_one();
        }
        if self.shared.durability == Durability::Sync && written.last.is_some() {
            let storage = &*self.shared.storage;
            let synced = self.shared.group_sync.sync_to(commit, storage);
            synced.map_err(Error::NotDurable)?;
        }
        Ok(Some(written))
    }

    fn run_transaction<T>(
        &self,
        mut run: impl FnMut(&mut Transaction) -> Result<T, Error>,
    ) -> Result<(T, Option<Dot>), Error> {
        for _ in 0..TRANSACTION_ATTEMPTS {
            self.shared.check_open()?;
            let mut transaction = Transaction::new(self.snapshot());
            let outcome = run(&mut transaction)?;
            let (reads, ops) = transaction.into_parts();
            let storage = &*self.shared.storage;
            let changed = |_: &Replica| {
                for (key, row) in &reads {
                    if storage.get(Table::Data, key)? != *row {
                        return Ok(true);
                    }
                }
                Ok(false)
            };
            if ops.is_empty() {
                return Ok((outcome, None));
            }
            if let Some(written) = self.write_unless(&ops, changed)? {
                return Ok((outcome, written.last));
            }
        }
        Err(Error::Contended {
            attempts: TRANSACTION_ATTEMPTS,
        })
    }

    fn check_ops(&self, ops: &[Op]) -> Result<(), Error> {
        let value_max = self.shared.value_bytes_max;
        let mut bytes = 0;
        for op in ops {
            check_key(op.key())?;
            bytes += op.key().len();
            if let Op::Put(_, value) | Op::PutUntil(_, value, _) = op {
                check_size("value", value.len(), value_max)?;
                bytes += value.len();
            }
        }
        check_size("operations", ops.len(), BATCH_OPS_MAX)?;
        check_size("batch", bytes, BATCH_BYTES_MAX)
    }

    /// Lets the first write wait for one conversation, so that it conflicts with less.
    fn attempt_first_sync(&self) {
        if self.shared.may_write.load(Ordering::Acquire) {
            return;
        }
        let mut replica = self.shared.replica();
        let deadline = deadline(replica.config().first_sync_timeout);
        self.shared.wake.notify_one();
        while replica.first_sync() == FirstSync::Waiting
            && Instant::now() < deadline
            && self.shared.check_open().is_ok()
        {
            replica = self.wait_for_progress(replica, deadline);
        }
        self.shared.may_write.store(true, Ordering::Release);
    }

    fn wait_for_progress<'a>(
        &self,
        replica: MutexGuard<'a, Replica>,
        until: Instant,
    ) -> MutexGuard<'a, Replica> {
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.shared.progress.wait_timeout(replica, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Db")
    }
}

impl Handle {
    fn start(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads().push(thread.map_err(Error::Thread)?);
        Ok(())
    }

    /// Asks a source of peers on a thread of its own, for which nothing waits: it holds the database only
    /// while it tells what it has heard.
    fn ask_source(&self, slot: SourceSlot) -> Result<(), Error> {
        let shared = Arc::downgrade(&self.shared);
        self.sources.admit(&slot);
        let desk = Arc::clone(&self.sources);
        let thread = std::thread::Builder::new().name("level-replicator-peers".to_owned());
        let thread = thread.spawn(move || source::watch(&shared, &desk, &slot));
        thread.map(drop).map_err(Error::Thread)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) -> Result<(), Error> {
        if !self.shared.mark_closed() {
            return Err(Error::Closed);
        }
        self.sources.close();
        self.shared.stop.notify_one();
        self.shared.progress.notify_all();
        for thread in self.threads().drain(..) {
            // A thread that panicked has said so; the data is safe all the same.
            let _ = thread.join();
        }
        self.shared.events.close();
        self.shared.feed.close();
        let closed = self.shared.replica().state_mut().close();
        self.shared.storage.close()?;
        Ok(closed?)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Nobody is left who could be told of an error.
        let _ = self.close();
    }
}

/// Writes that are committed as one.
///
/// Dropped without [`Batch::commit`], it writes nothing.
pub struct Batch<'a> {
    db: &'a Db,
    ops: Vec<Op>,
}

impl Batch<'_> {
    /// Sets a key. Of several operations on one key the last counts.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        let key = Bytes::copy_from_slice(key.as_ref());
        let value = Bytes::copy_from_slice(value.as_ref());
        self.ops.push(Op::Put(key, value));
        self
    }

    /// The same as [`Batch::put`], with options.
    pub fn put_with(
        &mut self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: &PutOptions,
    ) -> &mut Self {
        self.ops.push(options.op(key.as_ref(), value.as_ref()));
        self
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.ops
            .push(Op::Delete(Bytes::copy_from_slice(key.as_ref())));
        self
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Writes all of it or nothing. Readers here see all or none of it, at once; readers of another
    /// replica do too, unless it is catching up on a great deal.
    ///
    /// The answer names the last write, whose replication implies that of the others; `None` if
    /// nothing had to be written.
    ///
    /// # Errors
    ///
    /// As [`Db::put`]; [`Error::TooLarge`] also for more than 1,000,000 operations or 256 MiB.
    pub fn commit(self) -> Result<Option<Dot>, Error> {
        Ok(self.db.write(&self.ops)?.last)
    }
}

/// A view of one moment. It holds that moment's data until it is dropped.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) tables: Arc<dyn Tables>,
    pub(crate) view: View,
}

impl Snapshot {
    /// What readers saw of a key; see [`Db::get`].
    ///
    /// # Errors
    ///
    /// As [`Db::get`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>, Error> {
        let key = key.as_ref();
        check_key(key)?;
        match self.tables.get(Table::Data, key)? {
            None => Ok(None),
            Some(row) => self.view.value(&Bytes::copy_from_slice(key), row),
        }
    }

    /// Keys and values in a range of keys; see [`Db::range`].
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Range {
        let start = range
            .start_bound()
            .map(|key| Key::copy_from_slice(key.as_ref()));
        let end = range
            .end_bound()
            .map(|key| Key::copy_from_slice(key.as_ref()));
        self.between(bound_as_slice(&start), bound_as_slice(&end))
    }

    /// Keys and values of all keys with a prefix; see [`Db::prefix`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        let (start, end) = prefix_bounds(prefix.as_ref());
        self.between(bound_as_slice(&start), bound_as_slice(&end))
    }

    /// All keys and values.
    pub fn iter(&self) -> Range {
        self.between(Bound::Unbounded, Bound::Unbounded)
    }

    pub(crate) fn tables(&self) -> &dyn Tables {
        &*self.tables
    }

    fn between(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range {
        let entries = self.tables.range(Table::Data, start, end);
        Range::new(entries, self.view.clone())
    }
}

pub(crate) fn check_key(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::EmptyKey);
    }
    check_size("key", key.len(), KEY_BYTES_MAX)
}

fn check_size(what: &'static str, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit {
        return Err(Error::TooLarge { what, size, limit });
    }
    Ok(())
}

fn not_reached(addresses: Vec<Address>) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    Err(Error::NotReached { addresses })
}

fn peer_statuses(replica: &Replica, steady_us: u64) -> Vec<PeerStatus> {
    let ours = replica.state().clock();
    let statuses = replica.peers().iter().map(|(address, peer)| {
        let session = replica.sessions().find(|session| {
            session.home.as_ref() == Some(address)
                || (peer.replica.is_some() && session.replica() == peer.replica)
        });
        let heard = session
            .filter(|session| session.heard)
            .map(|session| &session.theirs);
        let heard = heard.or(peer.heard.as_ref());
        PeerStatus {
            address: address.clone(),
            discovery: peer.discovery,
            replica: peer.replica,
            connected: session.is_some_and(|session| session.hello.is_some()),
            failures: peer.failures,
            lag: heard.map(|theirs| ours.count_missing_in(theirs)),
            synced_ago: peer
                .synced_us
                .map(|synced| Duration::from_micros(steady_us.saturating_sub(synced))),
        }
    });
    statuses.collect()
}

fn held_back_by(replica: &Replica, now: Now) -> Vec<(ReplicaId, Duration)> {
    let missing = replica.held_back_by(now).into_iter();
    missing
        .map(|(member, silent_us)| (member, Duration::from_micros(silent_us)))
        .collect()
}

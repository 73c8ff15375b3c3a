//! The one loop that feeds the core: sockets and timers in, bytes and events out.
//!
//! It runs on a thread of its own with a runtime of its own, so a database can be used from any
//! program, with an async runtime or without.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::Now;
use level_replicator_core::event::{Discovery, Event};
use level_replicator_core::replica::{Input, Output};
use level_replicator_core::session::{LinkId, PeerError};
use level_replicator_core::state::scan_tally;
use level_replicator_core::storage::StorageError;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet, spawn_blocking, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::discovery::lan::Lan;
use crate::error::Error;
use crate::options::Options;
use crate::secret::ClusterKeys;
use crate::shared::Shared;
use crate::transport::link::{self, LinkHandle, LinkQueue};

/// Inputs that wait for the loop; a link that finds no room waits, and its peer with it.
const INPUTS_MAX: usize = 32;

/// Handshakes of strangers at once.
const HANDSHAKES_MAX: usize = 64;

/// What was written is made to survive a loss of power this often.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// How long links may take to say goodbye when the database is closed.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);

/// What the tasks tell the loop.
pub(crate) enum FromLink {
    Connected(LinkId),
    ConnectFailed(LinkId, PeerError),
    Accepted(Box<Welcomed>),
    Refused(Address, PeerError),
    Received(LinkId, Bytes),
    Closed(LinkId, Option<PeerError>),
    /// A link's tasks have ended.
    Ended,
    Discovered(Address, Discovery),
    MulticastJoined,
    MulticastFailed(PeerError),
    /// Everything that was committed before the sync began is durable, or why it is not.
    Synced(SyncCause, Result<(), StorageError>),
}

/// Who wanted a sync.
#[derive(Clone, Copy)]
pub(crate) enum SyncCause {
    /// The replica, which waits for it.
    Replica,
    /// The clock.
    Interval,
}

/// A peer that reached us and proved its membership.
pub(crate) struct Welcomed {
    remote: Address,
    stream: (crate::transport::NoiseReader, crate::transport::NoiseWriter),
}

/// Takes a port, so that its being in use is told where the database is opened.
pub(crate) fn listen(address: &Address) -> Result<(StdListener, Address), Error> {
    let bind = || {
        let resolved: Vec<SocketAddr> = address.as_str().to_socket_addrs()?.collect();
        let listener = StdListener::bind(&resolved[..])?;
        listener.set_nonblocking(true)?;
        let bound = Address::from(listener.local_addr()?);
        Ok((listener, bound))
    };
    bind().map_err(|source| Error::Listen {
        address: address.clone(),
        source,
    })
}

/// Runs until the database is closed.
pub(crate) fn run(shared: &Arc<Shared>, options: &Options, listener: Option<StdListener>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "replication cannot start");
            return;
        }
    };
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let (sender, receiver) = channel(INPUTS_MAX);
        let mut driver = Driver {
            shared: Arc::clone(shared),
            keys: Rc::new(ClusterKeys::derive(
                options.secret.as_ref(),
                &options.config.cluster,
            )),
            links: HashMap::new(),
            work: Vec::new(),
            is_syncing: false,
            has_sync_failed: false,
            sender,
        };
        if let Some(listener) = listener {
            driver.accept_from(listener);
        }
        driver.look_around(options);
        driver.run(receiver).await;
    });
    // A name that is being resolved must not hold up the end.
    runtime.shutdown_background();
}

struct Driver {
    shared: Arc<Shared>,
    keys: Rc<ClusterKeys>,
    links: HashMap<LinkId, LinkHandle>,
    work: Vec<JoinHandle<()>>,
    /// A sync of the interval's runs.
    is_syncing: bool,
    /// The interval's last sync failed.
    has_sync_failed: bool,
    sender: Sender<FromLink>,
}

impl Driver {
    async fn run(&mut self, mut receiver: Receiver<FromLink>) {
        let shared = Arc::clone(&self.shared);
        let mut sync_ticks = interval(SYNC_INTERVAL);
        sync_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.feed_timeouts();
            let timer = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shared.stop.notified() => break,
                _ = sync_ticks.tick() => self.sync_at_interval(),
                input = receiver.recv() => {
                    if let Some(input) = input {
                        self.take(input);
                    }
                }
                () = shared.wake.notified() => self.feed(Input::Timeout),
                () = timer => self.feed(Input::Timeout),
            }
        }
        self.hang_up(receiver).await;
    }

    /// Gives the replica its due timeouts; answers when the next one comes.
    fn feed_timeouts(&mut self) -> Option<Instant> {
        let due = self.shared.replica().next_timeout()?;
        let clock = self.shared.clock;
        if due > clock.now().steady_us {
            return Some(Instant::from_std(clock.instant(due)));
        }
        self.feed(Input::Timeout);
        // Anything still due comes right after what has arrived meanwhile.
        let due = self.shared.replica().next_timeout()?;
        Some(Instant::from_std(clock.instant(due)))
    }

    fn take(&mut self, input: FromLink) {
        match input {
            FromLink::Connected(link) => self.feed(Input::Connected(link)),
            FromLink::ConnectFailed(link, error) => {
                self.links.remove(&link);
                self.feed(Input::ConnectFailed(link, error));
            }
            FromLink::Accepted(welcomed) => self.accept(*welcomed),
            FromLink::Refused(remote, error) => {
                tracing::warn!(%remote, %error, "connection refused");
                let address = Some(remote);
                self.shared.events.send(Event::Error { address, error });
            }
            FromLink::Received(link, bytes) => self.feed(Input::Received(link, bytes)),
            FromLink::Closed(link, error) => {
                self.links.remove(&link);
                self.feed(Input::Closed(link, error));
            }
            FromLink::Ended => {
                self.shared.links.fetch_sub(1, Ordering::AcqRel);
                // Whoever has looked at the number under the lock waits by now.
                drop(self.shared.replica());
                self.shared.progress.notify_all();
            }
            FromLink::Discovered(address, by) => self.feed(Input::Discovered(address, by)),
            FromLink::MulticastJoined => self.shared.multicast.store(true, Ordering::Relaxed),
            FromLink::MulticastFailed(error) => self.tell_failure(error),
            FromLink::Synced(SyncCause::Replica, outcome) => {
                // The interval's sync fails too, and tells of it.
                if outcome.is_ok() {
                    self.feed(Input::Synced);
                }
            }
            FromLink::Synced(SyncCause::Interval, outcome) => {
                self.is_syncing = false;
                // Most engines are done for then, but some recover: it is told once, and tried again.
                let is_news = !std::mem::replace(&mut self.has_sync_failed, outcome.is_err());
                if let Err(error) = outcome
                    && is_news
                {
                    let reason = error.to_string();
                    self.tell_failure(PeerError::Storage { reason });
                }
            }
        }
    }

    /// Tells the program of an error that is no peer's.
    fn tell_failure(&self, error: PeerError) {
        tracing::warn!(%error);
        let address = None;
        self.shared.events.send(Event::Error { address, error });
    }

    /// Tells the replica what happened, and does what it answers.
    fn feed(&mut self, input: Input) {
        self.with_replica(|replica, now| replica.handle_input(now, input));
    }

    fn with_replica<T>(
        &mut self,
        action: impl FnOnce(&mut level_replicator_core::replica::Replica, Now) -> T,
    ) -> T {
        let shared = Arc::clone(&self.shared);
        let mut replica = shared.replica();
        let outcome = action(&mut replica, shared.clock.now());
        shared.note_commits(&replica);
        let mut outputs = Vec::new();
        while let Some(output) = replica.poll_output() {
            outputs.push(output);
        }
        drop(replica);
        outputs.into_iter().for_each(|output| self.act(output));
        shared.progress.notify_all();
        outcome
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Connect(link, address) => self.dial(link, address),
            Output::Send(link, bytes) => {
                let Some(handle) = self.links.get(&link) else {
                    return;
                };
                if !handle.send(bytes) {
                    self.links.remove(&link);
                    let reason = "peer does not read what it is sent".to_owned();
                    let sender = self.sender.clone();
                    spawn_local(async move {
                        let error = Some(PeerError::Broken { reason });
                        let _ = sender.send(FromLink::Closed(link, error)).await;
                    });
                }
            }
            Output::Close(link) => {
                self.links.remove(&link);
            }
            Output::Sync => self.sync(SyncCause::Replica),
            Output::Scan => {
                let shared = Arc::clone(&self.shared);
                self.work(move || scan(&shared));
            }
            Output::Event(event) => {
                tracing::debug!(?event);
                self.shared.events.send(event);
            }
        }
    }

    /// Makes durable what was committed since the last time.
    fn sync_at_interval(&mut self) {
        if !self.is_syncing && self.shared.group_sync.is_behind() {
            self.is_syncing = true;
            self.sync(SyncCause::Interval);
        }
    }

    fn sync(&mut self, cause: SyncCause) {
        let shared = Arc::clone(&self.shared);
        let (tell, told) = oneshot::channel();
        self.work(move || {
            let _ = tell.send(shared.group_sync.sync_all(&*shared.storage));
        });
        let sender = self.sender.clone();
        spawn_local(async move {
            if let Ok(outcome) = told.await {
                let _ = sender.send(FromLink::Synced(cause, outcome)).await;
            }
        });
    }

    /// Does something that takes a while on a thread of its own. The end waits for it.
    fn work(&mut self, work: impl FnOnce() + Send + 'static) {
        self.work.retain(|running| !running.is_finished());
        self.work.push(spawn_blocking(work));
    }

    fn new_link(&mut self, link: LinkId) -> LinkQueue {
        let granted = {
            let replica = self.shared.replica();
            replica.config().window + replica.config().record_bytes_max()
        };
        let (handle, queue) = LinkHandle::new(granted);
        self.links.insert(link, handle);
        self.shared.links.fetch_add(1, Ordering::AcqRel);
        queue
    }

    fn dial(&mut self, link: LinkId, address: Address) {
        let mut queue = self.new_link(link);
        let sender = self.sender.clone();
        let keys = Rc::clone(&self.keys);
        spawn_local(async move {
            let dialed = tokio::select! {
                dialed = link::dial(&address, &keys.handshake[0]) => Some(dialed),
                // Nothing is queued before the link is made, so this ends only without the driver.
                () = queue.let_go() => None,
            };
            match dialed {
                None => {}
                Some(Ok(stream)) => {
                    let _ = sender.send(FromLink::Connected(link)).await;
                    link::run(link, stream, queue, sender.clone()).await;
                }
                Some(Err(error)) => {
                    let _ = sender.send(FromLink::ConnectFailed(link, error)).await;
                }
            }
            let _ = sender.send(FromLink::Ended).await;
        });
    }

    fn accept(&mut self, welcomed: Welcomed) {
        let Welcomed { remote, stream } = welcomed;
        let shared = Arc::clone(&self.shared);
        let mut replica = shared.replica();
        let Some(link) = replica.accept(shared.clock.now(), remote) else {
            return;
        };
        drop(replica);
        let queue = self.new_link(link);
        let sender = self.sender.clone();
        spawn_local(async move {
            link::run(link, stream, queue, sender.clone()).await;
            let _ = sender.send(FromLink::Ended).await;
        });
        self.feed(Input::Timeout);
    }

    fn accept_from(&mut self, listener: StdListener) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                return;
            }
        };
        if let Some(address) = self.shared.listen.clone() {
            self.shared.events.send(Event::Listening { address });
        }
        let sender = self.sender.clone();
        let keys = Rc::clone(&self.keys);
        spawn_local(async move {
            let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
            loop {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, remote)) => {
                        let welcome = welcome(stream, remote, Rc::clone(&keys), sender.clone());
                        spawn_local(async move {
                            welcome.await;
                            drop(permit);
                        });
                    }
                    // Out of file descriptors, most likely: others must close first.
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
        });
    }

    fn look_around(&mut self, options: &Options) {
        let Some(mut config) = options.multicast.clone() else {
            return;
        };
        config.loopback_only = options.is_loopback_only();
        let replica = self.shared.replica();
        let reachable = self.shared.listen.is_some() || options.config.advertised.is_some();
        let lan = Lan {
            config,
            instance: replica.instance(),
            advertised: replica.config().advertised.clone().filter(|_| reachable),
            keys: self.keys.announcement.clone(),
        };
        drop(replica);
        spawn_local(lan.run(self.sender.clone()));
    }

    /// Says goodbye to everybody, and waits a moment for it to arrive.
    async fn hang_up(&mut self, mut receiver: Receiver<FromLink>) {
        self.with_replica(|replica, now| replica.pause(now));
        self.links.clear();
        let farewell = async {
            while self.shared.links.load(Ordering::Acquire) > 0 {
                match receiver.recv().await {
                    Some(FromLink::Ended) => {
                        self.shared.links.fetch_sub(1, Ordering::AcqRel);
                    }
                    Some(_) => {}
                    None => return,
                }
            }
        };
        let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
        // It holds the storage, and has nobody to tell any more.
        drop(receiver);
        for running in std::mem::take(&mut self.work) {
            let _ = running.await;
        }
    }
}

/// Reads all data through once, to know its counts and digest again.
fn scan(shared: &Shared) {
    let replica = shared.replica();
    let start = replica.state().begin_scan();
    let snapshot = shared.storage.snapshot();
    let writers = Arc::clone(replica.state().writers());
    drop(replica);
    let open = || shared.check_open().is_ok();
    match scan_tally(&*snapshot, &writers, open) {
        Ok(Some(scanned)) => shared.replica().state_mut().end_scan(scanned, start),
        Ok(None) => {}
        // The sums stay unknown; a peer is asked for what cannot be read.
        Err(damage) => shared.replica().note_damage(&damage),
    }
    shared.progress.notify_all();
}

async fn welcome(
    stream: TcpStream,
    remote: SocketAddr,
    keys: Rc<ClusterKeys>,
    sender: Sender<FromLink>,
) {
    let remote = Address::from(remote);
    let said = match link::welcome(stream, &keys.handshake).await {
        Ok(stream) => FromLink::Accepted(Box::new(Welcomed { remote, stream })),
        Err(error) => FromLink::Refused(remote, error),
    };
    let _ = sender.send(said).await;
}

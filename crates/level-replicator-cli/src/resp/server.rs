//! The server: its thread, its listener, and what its connections share.
//!
//! The rule: everything here belongs to one thread. What takes long is done elsewhere and awaited.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use level_replicator::{Address, Db, Event};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{LocalSet, spawn_local, yield_now};

use crate::resp::client::Client;
use crate::resp::connection::Connection;
use crate::resp::cursors::Cursors;
use crate::resp::mailbox::Ended;
use crate::resp::options::{BLOCKING_CALLS_MAX, READ_BYTES, RespOptions, STOP_TIMEOUT};
use crate::resp::subscriptions::Subscriptions;
use crate::resp::writer::Writer;

/// How long the server waits when the operating system gives it no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Events that are told before others have their turn.
const EVENTS_AT_ONCE: usize = 256;

/// Why the server could not be started. Nothing was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on.
    #[error(
        "cannot serve the Redis protocol on {address}: {source}; choose another port, or end what uses it"
    )]
    Listen {
        /// The address.
        address: Address,
        /// What the operating system says.
        source: io::Error,
    },
    /// Other machines could come in without a password.
    #[error(
        "the Redis protocol on {address} can be reached from other machines but has no password: \
         set one, or listen on 127.0.0.1"
    )]
    Open {
        /// The address.
        address: Address,
    },
    /// The operating system has no thread or no poll for us.
    #[error("cannot start the thread of the Redis protocol: {0}")]
    Thread(#[source] io::Error),
}

/// A running server of the Redis protocol. Dropped, it stops.
pub struct RespServer {
    address: Address,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl RespServer {
    /// Begins to serve a database.
    ///
    /// # Errors
    ///
    /// [`StartError`]: the address is taken or open to everybody, or there is no thread.
    pub fn start(db: Db, options: RespOptions) -> Result<RespServer, StartError> {
        let (listener, address) = listen(&options)?;
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder
            .enable_io()
            .enable_time()
            .max_blocking_threads(2 * BLOCKING_CALLS_MAX)
            .thread_name("level-replicator-resp-call");
        let runtime = builder.build().map_err(StartError::Thread)?;
        let stop = Arc::new(Notify::new());
        let thread = std::thread::Builder::new().name("level-replicator-resp".to_owned());
        let thread = thread.spawn({
            let stop = Arc::clone(&stop);
            move || run(runtime, db, options, listener, address, &stop)
        });
        Ok(RespServer {
            address: address.into(),
            stop,
            thread: Some(thread.map_err(StartError::Thread)?),
        })
    }

    /// Where it listens, with the port that was really taken.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Ends all connections, once what they are doing is done or some seconds have passed, and frees the port.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for RespServer {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for RespServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RespServer({})", self.address)
    }
}

fn listen(options: &RespOptions) -> Result<(TcpListener, SocketAddr), StartError> {
    let address = options.listen.clone();
    let failed = |source| StartError::Listen {
        address: address.clone(),
        source,
    };
    let found: Vec<SocketAddr> = address
        .as_str()
        .to_socket_addrs()
        .map_err(failed)?
        .collect();
    let is_local = found.iter().all(|found| found.ip().is_loopback());
    if options.password.is_none() && !is_local {
        return Err(StartError::Open { address });
    }
    let listener = TcpListener::bind(&found[..]).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

fn run(
    runtime: Runtime,
    db: Db,
    options: RespOptions,
    listener: TcpListener,
    address: SocketAddr,
    stop: &Notify,
) {
    let tasks = LocalSet::new();
    let server = Rc::new(Server::new(db, options, address));
    tasks.block_on(&runtime, async {
        spawn_local({
            let server = Rc::clone(&server);
            async move { server.writer.run(&server.db).await }
        });
        tokio::select! {
            () = stop.notified() => {}
            () = server.accept(listener) => {}
        }
        server.end_clients().await;
    });
    drop(tasks);
    drop(server);
    // A call that still waits for a peer ends with the database.
    runtime.shutdown_timeout(STOP_TIMEOUT);
}

/// What the connections share.
pub(crate) struct Server {
    pub(crate) db: Db,
    pub(crate) options: RespOptions,
    pub(crate) address: SocketAddr,
    pub(crate) started_at: Instant,
    pub(crate) writer: Writer,
    pub(crate) cursors: RefCell<Cursors>,
    pub(crate) clients: RefCell<BTreeMap<u64, Rc<Client>>>,
    pub(crate) subscriptions: RefCell<Subscriptions>,
    /// Turns for calls that take a thread.
    pub(crate) blocking: Semaphore,
    /// Bytes of requests that wait, beyond what each client has free.
    pub(crate) waiting_bytes: Cell<usize>,
    /// Connections that wait in `WAIT`.
    pub(crate) waiters: Cell<usize>,
    /// Where every read from a socket goes first, so that a connection that says nothing holds no buffer.
    pub(crate) scratch: RefCell<Vec<u8>>,
    pub(crate) counts: Counts,
    is_listening: Cell<bool>,
    next_id: Cell<u64>,
}

/// What has happened, for `INFO`.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: Cell<u64>,
    pub(crate) refused: Cell<u64>,
    pub(crate) commands: Cell<u64>,
}

impl Server {
    fn new(db: Db, options: RespOptions, address: SocketAddr) -> Server {
        // Keyed by the operating system's chance; secret enough to tell our cursors from older ones.
        let chance = RandomState::new().hash_one(0);
        Server {
            writer: Writer::new(options.durability, options.value_bytes_max),
            cursors: RefCell::new(Cursors::new(chance)),
            clients: RefCell::default(),
            subscriptions: RefCell::default(),
            blocking: Semaphore::new(BLOCKING_CALLS_MAX),
            waiting_bytes: Cell::new(0),
            waiters: Cell::new(0),
            scratch: RefCell::new(vec![0; READ_BYTES]),
            counts: Counts::default(),
            is_listening: Cell::new(false),
            next_id: Cell::new(1),
            started_at: Instant::now(),
            db,
            options,
            address,
        }
    }

    /// Takes connections in, for ever.
    async fn accept(self: &Rc<Self>, listener: TcpListener) {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!("cannot serve the Redis protocol: {error}");
                return;
            }
        };
        let mut has_failed = false;
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    has_failed = false;
                    self.welcome(stream, address);
                }
                Err(error) => {
                    // The usual cause, too many open files, stays for a while: it is said once.
                    if !has_failed {
                        tracing::warn!("cannot take in a client of the Redis protocol: {error}");
                    }
                    has_failed = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        if self.clients.borrow().len() >= self.options.clients_max {
            self.counts.refused.set(self.counts.refused.get() + 1);
            // There is room for a line in a new connection; whether it arrives is not ours to wait for.
            if let Ok(mut stream) = stream.into_std() {
                let _ = stream.write_all(b"-ERR max number of clients reached\r\n");
            }
            return;
        }
        // Without it a reply could wait for an acknowledgement; it works all the same.
        let _ = stream.set_nodelay(true);
        let id = self.next_id.replace(self.next_id.get() + 1);
        let local_address = stream.local_addr().unwrap_or(self.address);
        let client = Rc::new(Client::new(id, address, local_address));
        self.counts
            .connections
            .set(self.counts.connections.get() + 1);
        self.clients.borrow_mut().insert(id, Rc::clone(&client));
        let connection = Connection::new(Rc::clone(self), client, stream);
        spawn_local(connection.run());
    }

    async fn end_clients(&self) {
        for client in self.clients.borrow().values() {
            client.mailbox.end(Ended::Stopped);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !self.clients.borrow().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Tells subscribers of changes from now on, for as long as there are any.
    pub(crate) fn listen_to_changes(self: &Rc<Self>) {
        if self.is_listening.replace(true) {
            return;
        }
        let mut events = self.db.events();
        let server = Rc::clone(self);
        spawn_local(async move {
            let mut told = 0;
            while let Some(event) = events.next_async().await {
                if server.subscriptions.borrow().is_empty() {
                    break;
                }
                match event {
                    Event::Change { key, kind, .. } => {
                        let bytes_max = server.options.subscriber_bytes_max;
                        server.subscriptions.borrow().tell(&key, kind, bytes_max);
                    }
                    Event::Missed { count } => {
                        tracing::warn!(
                            "{count} events were too many at once: subscribers do not hear of them"
                        );
                    }
                    _ => {}
                }
                told += 1;
                if told % EVENTS_AT_ONCE == 0 {
                    yield_now().await;
                }
            }
            server.is_listening.set(false);
        });
    }
}

//! The server: its thread, its listener and its connections.
//!
//! The rule: a connection has a bound for everything it can wait for, and whoever holds one without asking goes first when
//! others come.

use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use level_replicator::{Address, Db, Events};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{sleep, timeout};

use crate::http::guests::{Answer, Counts, Guests, Place};
use crate::http::look::Looks;
use crate::http::options::{HEADER_BYTES_MAX, HttpOptions, STOP_LOOK_TIMEOUT, STOP_TIMEOUT};
use crate::http::patience::Patient;
use crate::http::readiness::Readiness;
use crate::http::recent::Recent;
use crate::http::routes::{Site, router};

/// How long the server waits when the operating system gives it no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Events that are looked at before others have their turn.
const EVENTS_AT_ONCE: usize = 256;

/// What one connection too many is told.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\n\
    content-length: 21\r\nretry-after: 1\r\nconnection: close\r\n\r\ntoo many connections\n";

/// Why the server could not be started. Nothing was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on.
    #[error(
        "cannot serve HTTP on {address}: {source}; choose another address by --http, or 'none', or end what uses it"
    )]
    Listen {
        /// The address.
        address: Address,
        /// What the operating system says.
        source: io::Error,
    },
    /// Other machines could look without a password.
    #[error(
        "HTTP on {address} can be reached from other machines but has no password: set one, or \
         listen on 127.0.0.1"
    )]
    Open {
        /// The address.
        address: Address,
    },
    /// The operating system has no thread or no poll for us.
    #[error("cannot start the thread of HTTP: {0}")]
    Thread(#[source] io::Error),
}

/// A running server of the page, the status and the metrics. Dropped, it stops.
pub struct HttpServer {
    address: Address,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Begins to show a database.
    ///
    /// # Errors
    ///
    /// [`StartError`]: the address is taken or open to everybody, or there is no thread.
    pub fn start(db: Db, options: HttpOptions) -> Result<HttpServer, StartError> {
        let (listener, address) = listen(&options)?;
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder
            .enable_io()
            .enable_time()
            .max_blocking_threads(1)
            .thread_name("level-replicator-http-look");
        let runtime = builder.build().map_err(StartError::Thread)?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new().name("level-replicator-http".to_owned());
        let thread = thread.spawn(move || run(runtime, db, options, listener, stopped));
        Ok(HttpServer {
            address: address.into(),
            stop,
            thread: Some(thread.map_err(StartError::Thread)?),
        })
    }

    /// Where it listens, with the port that was really taken.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Ends all connections, once what they are told is told or half a second has passed, and frees the port.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpServer({})", self.address)
    }
}

fn listen(options: &HttpOptions) -> Result<(TcpListener, SocketAddr), StartError> {
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
    options: HttpOptions,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let server = Rc::new(Server::new(db.clone(), options, stopped.clone()));
        spawn_local(remember(db.events_but_changes(), Arc::clone(&server.site)));
        drop(db);
        tokio::select! {
            // The sender is gone: that is a stop too.
            _ = stopped.wait_for(|stop| *stop) => {}
            () = server.accept(listener) => {}
        }
        server.end_connections().await;
    });
    drop(tasks);
    runtime.shutdown_timeout(STOP_LOOK_TIMEOUT);
}

/// Keeps what happened lately, until the database is closed.
async fn remember(mut events: Events, site: Arc<Site>) {
    let mut heard = 0;
    while let Some(event) = events.next_async().await {
        site.recent.hear(&event);
        heard += 1;
        if heard % EVENTS_AT_ONCE == 0 {
            yield_now().await;
        }
    }
}

/// What the connections share.
struct Server {
    site: Arc<Site>,
    router: Router,
    guests: Rc<Guests>,
    header_timeout: Duration,
    write_timeout: Duration,
    stopped: watch::Receiver<bool>,
}

impl Server {
    fn new(db: Db, options: HttpOptions, stopped: watch::Receiver<bool>) -> Server {
        let counts = Arc::new(Counts::default());
        let site = Arc::new(Site {
            db: db.clone(),
            looks: Looks::new(db, options.look_timeout),
            recent: Recent::default(),
            readiness: Readiness::default(),
            counts: Arc::clone(&counts),
            password: options.password,
        });
        Server {
            router: router(Arc::clone(&site)),
            site,
            guests: Rc::new(Guests::new(options.connections_max, counts)),
            header_timeout: options.header_timeout,
            write_timeout: options.write_timeout,
            stopped,
        }
    }

    /// Takes connections in, for ever.
    async fn accept(self: &Rc<Self>, listener: TcpListener) {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!("cannot serve HTTP: {error}");
                return;
            }
        };
        let mut has_failed = false;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    has_failed = false;
                    self.welcome(stream);
                }
                Err(error) => {
                    // The usual cause, too many open files, stays for a while: it is said once.
                    if !has_failed {
                        tracing::warn!("cannot take in a client of HTTP: {error}");
                    }
                    has_failed = true;
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(self: &Rc<Self>, stream: TcpStream) {
        // Without it a response could wait for an acknowledgement; it works all the same.
        let _ = stream.set_nodelay(true);
        match self.guests.admit() {
            Some(place) => {
                spawn_local(Rc::clone(self).converse(stream, place));
            }
            None => {
                // There is room for a line in a new connection; whether it arrives is not ours to wait for.
                if let Ok(mut stream) = stream.into_std() {
                    let _ = stream.write_all(TOO_MANY);
                }
            }
        }
    }

    /// One connection, to its end.
    async fn converse(self: Rc<Self>, stream: TcpStream, place: Place) {
        let routes = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|request: Request<Incoming>| {
            let turn = place.turn();
            let response = routes.call(request);
            async move {
                let response = response.await?;
                Ok::<_, std::convert::Infallible>(
                    response.map(|body: Body| Answer::new(body, turn)),
                )
            }
        });
        let stream = TokioIo::new(Patient::new(stream, self.write_timeout));
        // The time for headers begins when the last response has ended: it bounds idle connections too.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        let mut stopped = self.stopped.clone();
        tokio::select! {
            // Clients break off, and send what is no HTTP: nobody needs to hear of it.
            _ = connection.as_mut() => return,
            () = place.is_needed() => return,
            _ = stopped.wait_for(|stop| *stop) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = timeout(STOP_TIMEOUT, connection).await;
    }

    async fn end_connections(&self) {
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !self.guests.is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

//! One link: a TCP connection, its handshake, and the two tasks that move bytes.
//!
//! The rule: whatever the other end does, a link takes bounded memory, and a handshake bounded time.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::session::{LinkId, PeerError};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};

use super::noise::{self, NoiseReader, NoiseWriter};
use crate::driver::FromLink;

/// How long a connection and its handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what is left to send may take when a link is closed.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// What the two ends must agree on before anything else is said.
const PROLOGUE: &[u8] = b"level-replicator 1";

/// Bytes that may wait for a peer that does not read, beyond what the window grants.
const QUEUE_SLACK: usize = 32 << 20;

/// The driver's end of a link.
pub(crate) struct LinkHandle {
    commands: UnboundedSender<Bytes>,
    queued: Rc<Cell<usize>>,
    queue_max: usize,
    gone: Rc<Notify>,
}

/// The tasks' end of a link, before they run.
pub(crate) struct LinkQueue {
    commands: UnboundedReceiver<Bytes>,
    queued: Rc<Cell<usize>>,
    gone: Rc<Notify>,
}

impl LinkHandle {
    /// Both ends of a new link whose peer may be sent `granted` bytes at once. Dropping the handle
    /// closes the link after everything was sent.
    pub(crate) fn new(granted: usize) -> (LinkHandle, LinkQueue) {
        let (sender, receiver) = unbounded_channel();
        let queued = Rc::new(Cell::new(0));
        let gone = Rc::new(Notify::new());
        let handle = LinkHandle {
            commands: sender,
            queued: Rc::clone(&queued),
            queue_max: granted + QUEUE_SLACK,
            gone: Rc::clone(&gone),
        };
        let queue = LinkQueue {
            commands: receiver,
            queued,
            gone,
        };
        (handle, queue)
    }

    /// Queues bytes; answers false if the peer reads so slowly that too many wait.
    pub(crate) fn send(&self, bytes: Bytes) -> bool {
        let queued = self.queued.get() + bytes.len();
        if queued > self.queue_max {
            return false;
        }
        self.queued.set(queued);
        // If the tasks have ended already, the driver is about to hear of it.
        let _ = self.commands.send(bytes);
        true
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.gone.notify_one();
    }
}

impl LinkQueue {
    /// Returns when the driver has let go of the link. What is queued is dropped.
    pub(crate) async fn let_go(&mut self) {
        while self.commands.recv().await.is_some() {}
    }
}

/// Connects to an address and proves membership of the cluster.
pub(crate) async fn dial(
    address: &Address,
    key: &[u8; 32],
) -> Result<(NoiseReader, NoiseWriter), PeerError> {
    let connect = async {
        let stream = TcpStream::connect(address.as_str()).await;
        let stream = stream.map_err(|error| PeerError::Unreachable {
            reason: error.to_string(),
        })?;
        let handshake = noise::initiate(stream, key, PROLOGUE).await;
        handshake.map_err(|error| handshake_failed(&error))
    };
    let connected = timeout(CONNECT_TIMEOUT, connect).await;
    connected.unwrap_or_else(|_| {
        Err(PeerError::Unreachable {
            reason: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        })
    })
}

/// Lets a peer that connected prove membership of the cluster.
pub(crate) async fn welcome(
    stream: TcpStream,
    keys: &[[u8; 32]],
) -> Result<(NoiseReader, NoiseWriter), PeerError> {
    let handshake = timeout(CONNECT_TIMEOUT, noise::respond(stream, keys, PROLOGUE)).await;
    match handshake {
        Ok(outcome) => outcome.map_err(|error| handshake_failed(&error)),
        Err(_) => Err(PeerError::Handshake {
            reason: format!("not finished within {} s", CONNECT_TIMEOUT.as_secs()),
        }),
    }
}

fn handshake_failed(error: &noise::HandshakeError) -> PeerError {
    let cause = std::error::Error::source(error);
    let reason = match cause {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    PeerError::Handshake { reason }
}

/// Moves bytes both ways until the driver lets go of the link. That the peer is gone is told once.
pub(crate) async fn run(
    link: LinkId,
    (reader, writer): (NoiseReader, NoiseWriter),
    queue: LinkQueue,
    driver: Sender<FromLink>,
) {
    let gone = Rc::clone(&queue.gone);
    // A peer that no longer reads must not hold a link that the driver has let go of.
    let overdue = async {
        gone.notified().await;
        sleep(FAREWELL_TIMEOUT).await;
    };
    let reads = read_all(link, reader, driver);
    tokio::select! {
        never = reads => match never {},
        () = write_all(writer, queue) => {}
        () = overdue => {}
    }
}

async fn read_all(link: LinkId, mut reader: NoiseReader, driver: Sender<FromLink>) -> Infallible {
    let end = loop {
        match reader.read().await {
            Ok(Some(bytes)) => {
                // The channel is closed only when the driver ends, and this task with it.
                let _ = driver.send(FromLink::Received(link, bytes)).await;
            }
            Ok(None) => break None,
            Err(error) => {
                let reason = error.to_string();
                break Some(PeerError::Broken { reason });
            }
        }
    };
    let _ = driver.send(FromLink::Closed(link, end)).await;
    pending().await
}

async fn write_all(mut writer: NoiseWriter, mut queue: LinkQueue) {
    let mut joined = Vec::new();
    while let Some(bytes) = queue.commands.recv().await {
        // What has gathered meanwhile goes out together.
        let mut taken = bytes.len();
        let mut next = queue.commands.try_recv().ok();
        let written = if next.is_none() {
            writer.write_all(&bytes).await
        } else {
            joined.clear();
            joined.extend_from_slice(&bytes);
            while let Some(more) = next {
                taken += more.len();
                joined.extend_from_slice(&more);
                next = (joined.len() < 256 << 10)
                    .then(|| queue.commands.try_recv().ok())
                    .flatten();
            }
            writer.write_all(&joined).await
        };
        queue.queued.set(queue.queued.get().saturating_sub(taken));
        if written.is_err() {
            // The reader meets the same broken connection and tells of it.
            queue.let_go().await;
            return;
        }
    }
    let _ = writer.shutdown().await;
}

//! Passes connections on, and counts what really goes over them: handshake and encryption included.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;

/// Stands before a replica.
pub(crate) struct Counter {
    /// Where it is reached.
    pub(crate) address: String,
    target: Arc<Mutex<String>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    /// From those who dial, and to them.
    bytes: [AtomicU64; 2],
}

impl Counter {
    pub(crate) fn start() -> Result<Counter> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let target = Arc::<Mutex<String>>::default();
        let counts = Arc::<Counts>::default();
        let counter = Counter {
            address,
            target: Arc::clone(&target),
            counts: Arc::clone(&counts),
        };
        std::thread::spawn(move || {
            for dialed in listener.incoming().flatten() {
                let to = target
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let Ok(passed) = TcpStream::connect(to) else {
                    continue;
                };
                counts.connections.fetch_add(1, Ordering::Relaxed);
                // Failing clones show as connections that end.
                let _ = dialed.set_nodelay(true);
                let _ = passed.set_nodelay(true);
                for (way, from, to) in [(0, &dialed, &passed), (1, &passed, &dialed)] {
                    if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                        let counts = Arc::clone(&counts);
                        std::thread::spawn(move || pass(from, to, &counts.bytes[way]));
                    }
                }
            }
        });
        Ok(counter)
    }

    /// Names the replica that connections are passed on to.
    pub(crate) fn pass_to(&self, address: &str) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = address.to_owned();
    }

    /// Connections, bytes from those who dialed, bytes to them.
    pub(crate) fn counts(&self) -> [u64; 3] {
        let [from, to] = &self.counts.bytes;
        [&self.counts.connections, from, to].map(|count| count.load(Ordering::Relaxed))
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        count.fetch_add(read as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

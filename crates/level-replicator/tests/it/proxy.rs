//! A man in the middle: passes TCP connections on, counts and holds what passes, and cuts.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Passes connections on to a target that may be named later.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    target: Mutex<Option<SocketAddr>>,
    /// Bytes from the target that each connection passes before it is cut; 0 for no limit.
    answer_limit: AtomicU64,
    /// Records from the target after which each connection holds until it is let go.
    held: Mutex<Option<u64>>,
    let_go: Condvar,
    answered: AtomicU64,
    connections: AtomicU64,
    /// A bit of each byte from the target behind this place is turned over.
    garble_from: AtomicU64,
    /// Nothing is accepted any more.
    closed: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy on a free port that leads nowhere yet.
    pub(crate) fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.closed.load(Ordering::Acquire) {
                    return;
                }
                let target = *accepting.target.lock().expect("no panic");
                let (Ok(client), Some(target)) = (client, target) else {
                    continue;
                };
                let Ok(server) = TcpStream::connect(target) else {
                    continue;
                };
                accepting.connections.fetch_add(1, Ordering::AcqRel);
                let both = [&client, &server].map(|end| end.try_clone().expect("a handle"));
                accepting.sockets.lock().expect("no panic").extend(both);
                accepting.pass(client, server);
            }
        });
        Proxy { address, shared }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Names the target.
    pub(crate) fn lead_to(&self, target: &str) {
        let target = target.parse().expect("a socket address");
        *self.shared.target.lock().expect("no panic") = Some(target);
    }

    /// Cuts each connection after so many bytes from the target.
    pub(crate) fn cut_answers_after(&self, bytes: u64) {
        self.shared.answer_limit.store(bytes, Ordering::Release);
    }

    /// Turns bits over behind so many bytes from the target.
    pub(crate) fn garble_answers_after(&self, bytes: u64) {
        self.shared.garble_from.store(bytes, Ordering::Release);
    }

    /// Holds back what comes from the target after so many records of a connection.
    pub(crate) fn hold_answers_after_records(&self, records: u64) {
        *self.shared.held.lock().expect("no panic") = Some(records);
    }

    /// Lets go of what is held back.
    pub(crate) fn let_go(&self) {
        *self.shared.held.lock().expect("no panic") = None;
        self.shared.let_go.notify_all();
    }

    /// Bytes that came from the target and were passed on.
    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Acquire)
    }

    /// Connections that were passed on.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.let_go();
        for socket in self.shared.sockets.lock().expect("no panic").drain(..) {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn pass(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let ends = || [&client, &server].map(|end| end.try_clone().expect("a handle"));
        let [from_client, to_server] = ends();
        thread::spawn(move || {
            let (mut from, mut to) = (from_client, to_server);
            // A cut connection is what this proxy is for.
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let shared = Arc::clone(self);
        thread::spawn(move || {
            // Either end may be gone.
            let _ = shared.pass_answers(&server, &client);
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }

    /// Passes what the target says, record by record, as the transport cuts its stream.
    fn pass_answers(&self, mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
        let or_never = |limit: &AtomicU64| match limit.load(Ordering::Acquire) {
            0 => u64::MAX,
            limit => limit,
        };
        let limit = or_never(&self.answer_limit);
        let garble_from = or_never(&self.garble_from);
        let (mut passed, mut records) = (0, 0);
        while passed < limit {
            let mut header = [0; 2];
            from.read_exact(&mut header)?;
            let mut record = header.to_vec();
            record.resize(2 + usize::from(u16::from_be_bytes(header)), 0);
            from.read_exact(&mut record[2..])?;
            self.wait_until_free(records);

            record.truncate((limit - passed).min(record.len() as u64) as usize);
            for (place, byte) in record.iter_mut().enumerate().skip(2) {
                if passed + place as u64 >= garble_from {
                    *byte ^= 0x20;
                }
            }
            to.write_all(&record)?;
            passed += record.len() as u64;
            records += 1;
            self.answered
                .fetch_add(record.len() as u64, Ordering::AcqRel);
        }
        Ok(())
    }

    fn wait_until_free(&self, records: u64) {
        let mut held = self.held.lock().expect("no panic");
        while held.is_some_and(|at| records >= at) {
            held = self.let_go.wait(held).expect("no panic");
        }
    }
}

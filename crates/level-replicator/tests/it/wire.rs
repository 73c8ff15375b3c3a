//! A peer made by hand: the transport's handshake and records, to say what no replica would say.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use level_replicator_core::clock::{Clock, ReplicaId};
use level_replicator_core::frame::{FrameReader, FrameWriter, WIRE_VERSION};
use level_replicator_core::message::{Hello, Message};
use snow::{Builder, TransportState};

use crate::common::PATIENCE;

const PATTERN: &str = "Noise_XXpsk0_25519_AESGCM_SHA256";
const PROLOGUE: &[u8] = b"level-replicator 1";

/// The random number of the process that speaks here.
const INSTANCE: u64 = 7;

/// The key of the handshake in a cluster without a secret.
pub(crate) fn open_key(cluster: &str) -> [u8; 32] {
    let open = blake3::derive_key("level-replicator 2026-11 open cluster", cluster.as_bytes());
    blake3::derive_key("level-replicator 2026-11 handshake", &open)
}

/// One end of a link.
pub(crate) struct Wire {
    stream: TcpStream,
    transport: TransportState,
    frames: FrameReader,
    said: FrameWriter,
    /// What the peer said first, until it is heard.
    greeting: Option<Message>,
}

impl Wire {
    /// Connects and finishes the handshake.
    ///
    /// # Errors
    ///
    /// The peer closes the connection if it does not know the key.
    pub(crate) fn dial(address: &str, key: &[u8; 32]) -> io::Result<Wire> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let builder = || Builder::new(PATTERN.parse().expect("a pattern"));
        let own = builder().generate_keypair().expect("a key").private;
        let mut handshake = builder()
            .local_private_key(&own)
            .and_then(|builder| builder.psk(0, key))
            .and_then(|builder| builder.prologue(PROLOGUE))
            .and_then(Builder::build_initiator)
            .expect("a handshake");
        let mut message = [0; 1024];
        for _ in 0..2 {
            let length = handshake
                .write_message(&[], &mut message)
                .expect("a message");
            stream.write_all(&record(&message[..length]))?;
            if !handshake.is_handshake_finished() {
                let answer = read_record(&mut stream)?;
                handshake
                    .read_message(&answer, &mut [0; 1024])
                    .expect("an answer that fits");
            }
        }
        let mut wire = Wire {
            stream,
            transport: handshake
                .into_transport_mode()
                .expect("a finished handshake"),
            frames: FrameReader::new(INSTANCE),
            said: FrameWriter::default(),
            greeting: None,
        };
        wire.greeting = wire.hear();
        if let Some(Message::Hello(hello)) = &wire.greeting {
            wire.said.bind(hello.instance);
        }
        Ok(wire)
    }

    /// Says a message.
    pub(crate) fn say(&mut self, message: &Message) {
        message.encode(&mut self.said);
        let frame = self.said.take();
        self.say_bytes(&frame);
    }

    /// Says bytes that are encrypted and need be no message.
    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) {
        let sealed = self.seal(bytes);
        self.send(&sealed);
    }

    /// Encrypts bytes into a record without sending it.
    pub(crate) fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut sealed = vec![0; bytes.len() + 16];
        let length = self
            .transport
            .write_message(bytes, &mut sealed)
            .expect("a short message");
        record(&sealed[..length])
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // The peer may have closed the link already; then that is what the test is about.
        let _ = self.stream.write_all(bytes);
    }

    /// Ends the stream without a goodbye.
    pub(crate) fn cut(&mut self) {
        // The peer may have been faster.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// The next message; `None` when the peer has closed the link.
    pub(crate) fn hear(&mut self) -> Option<Message> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        loop {
            if let Some(frame) = self.frames.next_frame().expect("replicas send frames") {
                return Some(Message::decode(frame).expect("replicas send messages"));
            }
            let sealed = read_record(&mut self.stream).ok()?;
            let mut opened = vec![0; sealed.len()];
            let length = self
                .transport
                .read_message(&sealed, &mut opened)
                .expect("a true record");
            self.frames.push(&opened[..length]);
        }
    }

    /// Waits for the peer's hello.
    pub(crate) fn hear_hello(&mut self) -> Hello {
        match self.hear() {
            Some(Message::Hello(hello)) => hello,
            other => panic!("the peer said {other:?}, not hello"),
        }
    }

    /// Says hello as a new and empty replica.
    pub(crate) fn say_hello(&mut self, cluster: &str) {
        self.say(&Message::Hello(hello(cluster)));
    }

    /// Waits until the peer closes the link.
    #[track_caller]
    pub(crate) fn expect_close(mut self) {
        self.stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        loop {
            match self.stream.read(&mut [0; 4096]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("the peer does not close the link");
                }
                Err(_) => return,
            }
        }
    }
}

/// The hello of a new and empty replica.
pub(crate) fn hello(cluster: &str) -> Hello {
    Hello {
        version_min: WIRE_VERSION,
        version_max: WIRE_VERSION,
        cluster: cluster.to_owned(),
        replica: ReplicaId([7; 16]),
        instance: INSTANCE,
        clock_digest: Clock::default().digest(),
        state_digest: None,
        whole: true,
        settled: true,
        heals: false,
        token: 1,
        floor_digest: 0,
        cluster_digest: 0,
        epoch_digest: 0,
        addresses_digest: 0,
        advertised: None,
    }
}

fn record(sealed: &[u8]) -> Vec<u8> {
    let length = u16::try_from(sealed.len()).expect("a short record");
    [&length.to_be_bytes()[..], sealed].concat()
}

fn read_record(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut header = [0; 2];
    stream.read_exact(&mut header)?;
    let mut sealed = vec![0; usize::from(u16::from_be_bytes(header))];
    stream.read_exact(&mut sealed)?;
    Ok(sealed)
}

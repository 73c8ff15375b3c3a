//! An encrypted byte stream over TCP between two members of one cluster.
//!
//! The two ends run `Noise_XXpsk0_25519_AESGCM_SHA256`. Who holds the cluster's secret (the psk)
//! and names the same cluster (the prologue) is a member. Nobody else can make a first message
//! that is answered, and who replays a member's cannot finish. Static keys prove nothing here:
//! the pattern wants them, so each connection draws one.
//!
//! On the wire, in the handshake and after it, everything is a record: the length of the
//! ciphertext as a big-endian `u16`, then the ciphertext. The rule that must hold: a length is
//! checked against its bound before it is used, and no plaintext reaches the caller before its
//! record is authenticated and in its place. Noise counts the records of each direction, so a
//! changed, repeated, reordered or reflected record is refused.
//!
//! It does not hide sizes or times. It does not authenticate the end of the stream either: who
//! holds the wire can cut it between two records, so the protocol above must say when it is done.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use snow::{Builder, HandshakeState, TransportState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const PATTERN: &str = "Noise_XXpsk0_25519_AESGCM_SHA256";

/// The psk of `psk0` is mixed in before the first message, so it is checked by that message.
const PSK_LOCATION: u8 = 0;

const HEADER_LEN: usize = 2;

/// What AES-GCM appends to each plaintext.
const TAG_LEN: usize = 16;

/// Our handshake messages have 48, 96 and 64 bytes; the rest is room for payloads to come.
const HANDSHAKE_MESSAGE_MAX: usize = 1024;

/// Large enough that the cost per record vanishes, small enough to fit a fast cache.
const PLAINTEXT_MAX: usize = 32 * 1024;

const CIPHERTEXT_MAX: usize = PLAINTEXT_MAX + TAG_LEN;

/// Records written by one system call.
const RECORDS_PER_WRITE: usize = 4;

const WRITE_BUFFER_LEN: usize = RECORDS_PER_WRITE * (HEADER_LEN + CIPHERTEXT_MAX);

/// Bytes fetched by one system call: a whole batch of the peer's. It bounds the chunks that
/// [`NoiseReader::read`] returns, too.
const READ_BUFFER_LEN: usize = WRITE_BUFFER_LEN;

const _: () = assert!(CIPHERTEXT_MAX <= u16::MAX as usize);
const _: () = assert!(HEADER_LEN + CIPHERTEXT_MAX <= READ_BUFFER_LEN);
const _: () = assert!(HANDSHAKE_MESSAGE_MAX <= CIPHERTEXT_MAX);

/// Why two ends did not come to trust each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// Our socket, or our source of randomness, failed.
    #[error("connection failed during the handshake")]
    Io(#[source] io::Error),

    /// The peer went away. This is all an initiator sees of a peer that refused its secret.
    #[error(
        "peer closed the connection during the handshake; \
         likely its secret or its cluster name differs from ours"
    )]
    Closed,

    /// We cannot authenticate the peer.
    #[error(
        "peer's handshake message does not fit our secret; \
         it has another secret or another cluster name"
    )]
    Refused,

    /// The peer speaks another protocol.
    #[error("peer sent {length} bytes as a handshake message, which no such message has")]
    Malformed { length: usize },
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<BadLength> for HandshakeError {
    fn from(BadLength { length, .. }: BadLength) -> Self {
        Self::Malformed { length }
    }
}

/// Faults of our own making; what a peer can cause is sorted in [`open`].
impl From<snow::Error> for HandshakeError {
    fn from(error: snow::Error) -> Self {
        Self::Io(io::Error::other(error))
    }
}

/// Opens an encrypted stream as the end that connected.
///
/// The peer is known to hold `psk` and the same `prologue` when this returns. How long that may
/// take is for the caller to bound.
///
/// # Errors
///
/// A peer that refuses our secret only closes the connection: [`HandshakeError::Closed`].
pub(crate) async fn initiate(
    stream: TcpStream,
    psk: &[u8; 32],
    prologue: &[u8],
) -> Result<(NoiseReader, NoiseWriter), HandshakeError> {
    let (mut records, mut socket) = split(stream)?;
    let static_key = draw_static_key()?;
    let mut handshake = builder(&static_key, psk, prologue)?.build_initiator()?;

    send(&mut socket, &mut handshake).await?;
    receive(&mut records, |message| open(&mut handshake, message)).await?;
    send(&mut socket, &mut handshake).await?;

    finish(records, socket, handshake)
}

/// Opens an encrypted stream as the end that listened.
///
/// The peer is known to hold one of `psks` (two during a rotation of secrets) and the same
/// `prologue` when this returns. How long that may take is for the caller to bound.
///
/// # Errors
///
/// A peer whose first message fits none of `psks` is [`HandshakeError::Refused`]: it gets no
/// answer, only the end of the connection.
pub(crate) async fn respond(
    stream: TcpStream,
    psks: &[[u8; 32]],
    prologue: &[u8],
) -> Result<(NoiseReader, NoiseWriter), HandshakeError> {
    let (mut records, mut socket) = split(stream)?;
    let static_key = draw_static_key()?;

    let mut handshake = receive(&mut records, |message| {
        for psk in psks {
            let mut handshake = builder(&static_key, psk, prologue)?.build_responder()?;
            match open(&mut handshake, message) {
                Err(HandshakeError::Refused) => {}
                outcome => return outcome.map(|()| handshake),
            }
        }
        Err(HandshakeError::Refused)
    })
    .await?;
    send(&mut socket, &mut handshake).await?;
    receive(&mut records, |message| open(&mut handshake, message)).await?;

    finish(records, socket, handshake)
}

fn split(stream: TcpStream) -> io::Result<(RecordReader, OwnedWriteHalf)> {
    // Every write here is a whole batch of records: there is nothing to wait for.
    stream.set_nodelay(true)?;
    let (source, socket) = stream.into_split();
    Ok((RecordReader::new(source), socket))
}

fn draw_static_key() -> Result<Vec<u8>, snow::Error> {
    Ok(Builder::new(PATTERN.parse()?).generate_keypair()?.private)
}

fn builder<'a>(
    static_key: &'a [u8],
    psk: &'a [u8; 32],
    prologue: &'a [u8],
) -> Result<Builder<'a>, snow::Error> {
    Builder::new(PATTERN.parse()?)
        .local_private_key(static_key)?
        .psk(PSK_LOCATION, psk)?
        .prologue(prologue)
}

async fn send(
    socket: &mut OwnedWriteHalf,
    handshake: &mut HandshakeState,
) -> Result<(), HandshakeError> {
    let mut message = [0; HEADER_LEN + HANDSHAKE_MESSAGE_MAX];
    let length = handshake.write_message(&[], &mut message[HEADER_LEN..])?;
    message[..HEADER_LEN].copy_from_slice(&header(length));
    socket.write_all(&message[..HEADER_LEN + length]).await?;
    Ok(())
}

async fn receive<T>(
    records: &mut RecordReader,
    open: impl FnOnce(&[u8]) -> Result<T, HandshakeError>,
) -> Result<T, HandshakeError> {
    loop {
        if let Some(message) = records.peek(HANDSHAKE_MESSAGE_MAX)? {
            let length = message.len();
            let opened = open(message)?;
            // What was read beyond this message belongs to the stream, and stays.
            records.consume(length);
            return Ok(opened);
        }
        if records.fill().await? == 0 {
            return Err(HandshakeError::Closed);
        }
    }
}

fn open(handshake: &mut HandshakeState, message: &[u8]) -> Result<(), HandshakeError> {
    let mut payload = [0; HANDSHAKE_MESSAGE_MAX];
    match handshake.read_message(message, &mut payload) {
        Ok(_) => Ok(()),
        Err(snow::Error::Decrypt) => Err(HandshakeError::Refused),
        Err(snow::Error::Input) => Err(HandshakeError::Malformed {
            length: message.len(),
        }),
        Err(error) => Err(error.into()),
    }
}

fn finish(
    records: RecordReader,
    socket: OwnedWriteHalf,
    handshake: HandshakeState,
) -> Result<(NoiseReader, NoiseWriter), HandshakeError> {
    let transport = Rc::new(RefCell::new(handshake.into_transport_mode()?));
    let reader = NoiseReader {
        records,
        transport: Rc::clone(&transport),
    };
    let writer = NoiseWriter {
        socket,
        transport,
        buffer: vec![0; WRITE_BUFFER_LEN].into(),
        is_cut: false,
    };
    Ok((reader, writer))
}

/// The half that decrypts what the peer writes.
pub(crate) struct NoiseReader {
    records: RecordReader,
    /// Shared with the writer, and never borrowed across an await.
    transport: Rc<RefCell<TransportState>>,
}

impl NoiseReader {
    /// Reads the next chunk of plaintext, or `None` where the peer ended the stream.
    ///
    /// A chunk is never empty. It joins all records that have already arrived, so its borders
    /// mean nothing. It is safe to cancel: a dropped call loses no bytes.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a record that is malformed or not the peer's next one, `UnexpectedEof`
    /// for a stream that ends inside a record, and whatever the socket reports. The plaintext
    /// before the fault is returned first; after it, each call fails again.
    pub(crate) async fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let plaintext = self.open_buffered()?;
            if !plaintext.is_empty() {
                return Ok(Some(plaintext.into()));
            }
            if self.records.fill().await? == 0 {
                return self.records.end().map(|()| None);
            }
        }
    }

    fn open_buffered(&mut self) -> io::Result<Vec<u8>> {
        let mut plaintext = Vec::new();
        loop {
            match self.open_next(&mut plaintext) {
                Ok(true) => {}
                Err(error) if plaintext.is_empty() => return Err(error),
                // A bad record stays in the buffer, to fail again once this is delivered.
                Ok(false) | Err(_) => return Ok(plaintext),
            }
        }
    }

    /// Appends the plaintext of the next buffered record, if it is whole.
    fn open_next(&mut self, plaintext: &mut Vec<u8>) -> io::Result<bool> {
        let Some(record) = self.records.peek(CIPHERTEXT_MAX)? else {
            return Ok(false);
        };
        if plaintext.is_empty() {
            plaintext.reserve_exact(self.records.buffered().len());
        }

        // Where the tag fits too, snow decrypts without an allocation of its own.
        let start = plaintext.len();
        let length = record.len();
        plaintext.resize(start + length, 0);
        let mut transport = self.transport.borrow_mut();
        let opened = transport.read_message(record, &mut plaintext[start..]);
        plaintext.truncate(start + *opened.as_ref().unwrap_or(&0));

        opened.map_err(|_| {
            let text = "peer's record is damaged, repeated or out of order";
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        self.records.consume(length);
        Ok(true)
    }
}

/// The half that encrypts what the peer shall read.
pub(crate) struct NoiseWriter {
    socket: OwnedWriteHalf,
    /// Shared with the reader, and never borrowed across an await.
    transport: Rc<RefCell<TransportState>>,
    buffer: Box<[u8]>,
    /// A write ended between two bytes of a batch: what follows could never be read.
    is_cut: bool,
}

impl NoiseWriter {
    /// Writes all of `plaintext` and hands it to the socket.
    ///
    /// Nothing is kept back for a later flush, so a message should come in one call. It is not
    /// safe to cancel: once a call is dropped or fails, each later one fails.
    ///
    /// # Errors
    ///
    /// Whatever the socket reports, and `BrokenPipe` after a write that did not end.
    pub(crate) async fn write_all(&mut self, plaintext: &[u8]) -> io::Result<()> {
        for batch in plaintext.chunks(RECORDS_PER_WRITE * PLAINTEXT_MAX) {
            if self.is_cut {
                let text = "an earlier write to the peer was cut off";
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, text));
            }
            let sealed = self.seal(batch)?;
            self.is_cut = true;
            self.socket.write_all(&self.buffer[..sealed]).await?;
            self.is_cut = false;
        }
        Ok(())
    }

    /// Ends the stream, which the peer reads as `None`; our reader is not affected.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.socket.shutdown().await
    }

    /// Fills the buffer with the records of `batch`, and returns their length.
    fn seal(&mut self, batch: &[u8]) -> io::Result<usize> {
        let mut transport = self.transport.borrow_mut();
        let mut sealed = 0;
        for plaintext in batch.chunks(PLAINTEXT_MAX) {
            let (head, body) = self.buffer[sealed..].split_at_mut(HEADER_LEN);
            let length = transport
                .write_message(plaintext, body)
                .map_err(io::Error::other)?;
            head.copy_from_slice(&header(length));
            sealed += HEADER_LEN + length;
        }
        Ok(sealed)
    }
}

/// Cuts what the socket yields into records, still encrypted.
struct RecordReader {
    source: OwnedReadHalf,
    buffer: Box<[u8]>,
    /// The bytes of `buffer` that were read and not yet consumed.
    start: usize,
    end: usize,
}

/// A record whose header announces a length that none has.
#[derive(Debug, thiserror::Error)]
#[error("peer announced a record of {length} bytes, outside {TAG_LEN} to {max}")]
struct BadLength {
    length: usize,
    max: usize,
}

impl From<BadLength> for io::Error {
    fn from(error: BadLength) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

impl RecordReader {
    fn new(source: OwnedReadHalf) -> Self {
        Self {
            source,
            buffer: vec![0; READ_BUFFER_LEN].into(),
            start: 0,
            end: 0,
        }
    }

    fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The next record without its header, if all of it is buffered.
    fn peek(&self, max: usize) -> Result<Option<&[u8]>, BadLength> {
        let Some((header, rest)) = self.buffered().split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*header));
        if !(TAG_LEN..=max).contains(&length) {
            return Err(BadLength { length, max });
        }
        Ok(rest.get(..length))
    }

    /// Drops the record of `length` bytes that `peek` showed.
    fn consume(&mut self, length: usize) {
        self.start += HEADER_LEN + length;
    }

    /// Reads once from the socket and returns how much came: 0 is the end. Safe to cancel.
    ///
    /// There is always room, as each whole record is consumed first.
    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;

        let count = self.source.read(&mut self.buffer[self.end..]).await?;
        self.end += count;
        Ok(count)
    }

    /// Judges the end of the stream, which must lie between two records.
    fn end(&self) -> io::Result<()> {
        if self.buffered().is_empty() {
            return Ok(());
        }
        let text = "peer closed the connection inside a record";
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
    }
}

/// The header of a record whose ciphertext has `length` bytes.
fn header(length: usize) -> [u8; HEADER_LEN] {
    u16::try_from(length)
        .expect("a record is bounded by CIPHERTEXT_MAX")
        .to_be_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    const PSK: [u8; 32] = [1; 32];
    const OTHER_PSK: [u8; 32] = [2; 32];
    const CLUSTER: &[u8] = b"cluster a";
    const OTHER_CLUSTER: &[u8] = b"cluster b";

    type Halves = (NoiseReader, NoiseWriter);

    #[tokio::test]
    async fn bytes_of_any_size_arrive_whole_in_both_directions() {
        let (mut ours, mut theirs) = pair().await;
        let sizes = [
            0,
            1,
            PLAINTEXT_MAX - 1,
            PLAINTEXT_MAX,
            PLAINTEXT_MAX + 1,
            1 << 20,
            10 << 20,
        ];

        for size in sizes {
            let sent = pattern(size);
            for (writer, reader) in [(&mut ours.1, &mut theirs.0), (&mut theirs.1, &mut ours.0)] {
                let (written, got) = tokio::join!(writer.write_all(&sent), take(reader, size));
                written.unwrap();
                assert!(got == sent, "{size} bytes");
            }
        }
    }

    #[tokio::test]
    async fn a_shutdown_ends_one_direction_and_stays_the_end() {
        let (mut ours, mut theirs) = pair().await;

        ours.1.write_all(b"last words").await.unwrap();
        ours.1.shutdown().await.unwrap();

        assert_eq!(take(&mut theirs.0, 10).await, b"last words");
        assert_eq!(soon(theirs.0.read()).await.unwrap(), None);
        assert_eq!(soon(theirs.0.read()).await.unwrap(), None);
        theirs.1.write_all(b"heard").await.unwrap();
        assert_eq!(take(&mut ours.0, 5).await, b"heard");
    }

    #[tokio::test]
    async fn records_that_arrived_together_are_read_as_one_chunk() {
        let (mut ours, mut theirs, mut wire) = wired_pair().await;
        let mut both = wire.record_of(&mut ours.1, b"one ").await;
        both.extend(wire.record_of(&mut ours.1, b"chunk").await);

        wire.to_responder.write_all(&both).await.unwrap();

        assert_eq!(chunk(&mut theirs.0).await, "one chunk");
    }

    #[tokio::test]
    async fn data_in_the_packet_of_the_last_handshake_message_is_not_lost() {
        let (initiator, mut from_initiator) = tcp_pair().await;
        let (mut to_responder, responder) = tcp_pair().await;
        let initiate = async {
            let mut ours = soon(initiate(initiator, &PSK, CLUSTER)).await.unwrap();
            ours.1.write_all(b"early").await.unwrap();
            ours
        };
        let relay = async {
            relay_record(&mut from_initiator, &mut to_responder).await;
            relay_record(&mut to_responder, &mut from_initiator).await;
            let mut last_and_data = read_record(&mut from_initiator).await;
            last_and_data.extend(read_record(&mut from_initiator).await);
            to_responder.write_all(&last_and_data).await.unwrap();
        };

        let (_ours, theirs, ()) =
            tokio::join!(initiate, soon(respond(responder, &[PSK], CLUSTER)), relay);

        assert_eq!(chunk(&mut theirs.unwrap().0).await, "early");
    }

    #[tokio::test]
    async fn another_secret_is_refused_at_the_first_message_and_seen_as_a_close() {
        let (initiator, mut from_initiator) = tcp_pair().await;
        let (mut to_responder, responder) = tcp_pair().await;
        let relay_only_the_first = async {
            relay_record(&mut from_initiator, &mut to_responder).await;
            // The responder must close without a word more from either side.
            assert_eq!(to_responder.read(&mut [0; 1]).await.unwrap(), 0);
            drop(from_initiator);
        };

        let (ours, theirs, ()) = tokio::join!(
            soon(initiate(initiator, &OTHER_PSK, CLUSTER)),
            soon(respond(responder, &[PSK], CLUSTER)),
            relay_only_the_first
        );

        let ours = ours.err().unwrap();
        let theirs = theirs.err().unwrap();
        assert!(matches!(ours, HandshakeError::Closed), "{ours:?}");
        assert!(ours.to_string().contains("its secret or its cluster name"));
        assert!(matches!(theirs, HandshakeError::Refused), "{theirs:?}");
    }

    #[tokio::test]
    async fn another_cluster_is_refused_despite_the_same_secret() {
        let (initiator, responder) = tcp_pair().await;

        let (ours, theirs) = tokio::join!(
            soon(initiate(initiator, &PSK, CLUSTER)),
            soon(respond(responder, &[PSK, OTHER_PSK], OTHER_CLUSTER))
        );

        assert!(matches!(ours.err(), Some(HandshakeError::Closed)));
        assert!(matches!(theirs.err(), Some(HandshakeError::Refused)));
    }

    #[tokio::test]
    async fn a_responder_accepts_each_of_its_secrets_and_needs_one() {
        for (psks, is_accepted) in [
            (&[PSK, OTHER_PSK][..], true),
            (&[OTHER_PSK, PSK], true),
            (&[], false),
        ] {
            let (initiator, responder) = tcp_pair().await;

            let (ours, theirs) = tokio::join!(
                soon(initiate(initiator, &PSK, CLUSTER)),
                soon(respond(responder, psks, CLUSTER))
            );

            assert_eq!((ours.is_ok(), theirs.is_ok()), (is_accepted, is_accepted));
            if let (Ok(mut ours), Ok(mut theirs)) = (ours, theirs) {
                ours.1.write_all(b"hello").await.unwrap();
                assert_eq!(take(&mut theirs.0, 5).await, b"hello");
            }
        }
    }

    #[tokio::test]
    async fn garbage_is_no_first_message() {
        let of_the_right_length = [&header(48)[..], &[9; 48]].concat();
        assert!(matches!(
            respond_to(&of_the_right_length).await,
            HandshakeError::Refused
        ));

        let too_short_for_a_key = [&header(20)[..], &[9; 20]].concat();
        let over_the_bound = [&header(1025)[..], &[9; 1025]].concat();
        for (garbage, announced) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], 0x4745),
            (&[0, 0], 0),
            (&header(15), 15),
            (&too_short_for_a_key, 20),
            (&over_the_bound, 1025),
        ] {
            let error = respond_to(garbage).await;
            assert!(
                matches!(error, HandshakeError::Malformed { length } if length == announced),
                "{error:?}"
            );
        }

        assert!(matches!(respond_to(b"").await, HandshakeError::Closed));
        assert!(matches!(respond_to(&[0]).await, HandshakeError::Closed));
    }

    #[tokio::test]
    async fn a_damaged_answer_is_refused_by_the_initiator() {
        let (initiator, mut from_initiator) = tcp_pair().await;
        let (mut to_responder, responder) = tcp_pair().await;
        let damage_the_answer = async {
            relay_record(&mut from_initiator, &mut to_responder).await;
            let mut answer = read_record(&mut to_responder).await;
            *answer.last_mut().unwrap() ^= 1;
            from_initiator.write_all(&answer).await.unwrap();
            drop(to_responder);
        };

        let (ours, theirs, ()) = tokio::join!(
            soon(initiate(initiator, &PSK, CLUSTER)),
            soon(respond(responder, &[PSK], CLUSTER)),
            damage_the_answer
        );

        assert!(matches!(ours.err(), Some(HandshakeError::Refused)));
        assert!(matches!(theirs.err(), Some(HandshakeError::Closed)));
    }

    #[tokio::test]
    async fn a_peer_that_resets_the_connection_has_closed_it() {
        let (initiator, peer) = tcp_pair().await;
        let reset = async {
            // Closing with unread bytes makes the kernel send a reset.
            peer.readable().await.unwrap();
            drop(peer);
        };

        let (ours, ()) = tokio::join!(soon(initiate(initiator, &PSK, CLUSTER)), reset);

        assert!(matches!(ours.err(), Some(HandshakeError::Closed)));
    }

    #[tokio::test]
    async fn a_flipped_bit_is_invalid_data_after_what_came_before_it() {
        for flipped in [HEADER_LEN, HEADER_LEN + 4, HEADER_LEN + 4 + TAG_LEN - 1] {
            let (mut ours, mut theirs, mut wire) = wired_pair().await;
            let mut bytes = wire.record_of(&mut ours.1, b"good").await;
            let mut damaged = wire.record_of(&mut ours.1, b"evil").await;
            damaged[flipped] ^= 0x10;
            bytes.extend(damaged);

            wire.to_responder.write_all(&bytes).await.unwrap();

            assert_eq!(chunk(&mut theirs.0).await, "good");
            for _ in 0..2 {
                assert_eq!(fault(&mut theirs.0).await, io::ErrorKind::InvalidData);
            }
        }
    }

    #[tokio::test]
    async fn a_repeated_record_is_refused() {
        let (mut ours, mut theirs, mut wire) = wired_pair().await;
        let record = wire.record_of(&mut ours.1, b"once").await;

        wire.to_responder.write_all(&record).await.unwrap();
        assert_eq!(chunk(&mut theirs.0).await, "once");
        wire.to_responder.write_all(&record).await.unwrap();

        assert_eq!(fault(&mut theirs.0).await, io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_record_that_overtakes_another_is_refused() {
        let (mut ours, mut theirs, mut wire) = wired_pair().await;
        let _first = wire.record_of(&mut ours.1, b"first").await;
        let second = wire.record_of(&mut ours.1, b"second").await;

        wire.to_responder.write_all(&second).await.unwrap();

        assert_eq!(fault(&mut theirs.0).await, io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_record_sent_back_to_its_author_is_refused() {
        let (mut ours, _theirs, mut wire) = wired_pair().await;
        let record = wire.record_of(&mut ours.1, b"echo").await;

        wire.from_initiator.write_all(&record).await.unwrap();

        assert_eq!(fault(&mut ours.0).await, io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_length_no_record_has_is_refused_before_its_bytes_come() {
        for length in [0, TAG_LEN - 1, CIPHERTEXT_MAX + 1, usize::from(u16::MAX)] {
            let (_ours, mut theirs, mut wire) = wired_pair().await;

            wire.to_responder.write_all(&header(length)).await.unwrap();

            assert_eq!(fault(&mut theirs.0).await, io::ErrorKind::InvalidData);
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_record_is_an_unexpected_end() {
        for kept in [1, HEADER_LEN, HEADER_LEN + 1, HEADER_LEN + 4 + TAG_LEN - 1] {
            let (mut ours, mut theirs, mut wire) = wired_pair().await;
            let record = wire.record_of(&mut ours.1, b"half").await;

            wire.to_responder.write_all(&record[..kept]).await.unwrap();
            wire.to_responder.shutdown().await.unwrap();

            assert_eq!(fault(&mut theirs.0).await, io::ErrorKind::UnexpectedEof);
        }
    }

    #[tokio::test]
    async fn an_empty_record_is_not_the_end() {
        let (mut ours, mut theirs, mut wire) = wired_pair().await;
        // Our writer makes no empty records, but a peer may.
        let mut empty = [0; HEADER_LEN + TAG_LEN];
        empty[..HEADER_LEN].copy_from_slice(&header(TAG_LEN));
        let transport = Rc::clone(&ours.1.transport);
        let sealed = transport
            .borrow_mut()
            .write_message(&[], &mut empty[HEADER_LEN..]);
        assert_eq!(sealed.unwrap(), TAG_LEN);
        let after = wire.record_of(&mut ours.1, b"after").await;

        wire.to_responder.write_all(&empty).await.unwrap();
        wire.to_responder.write_all(&after).await.unwrap();

        assert_eq!(chunk(&mut theirs.0).await, "after");
    }

    #[tokio::test]
    async fn a_cancelled_read_loses_nothing() {
        let (mut ours, mut theirs, mut wire) = wired_pair().await;
        let sent = pattern(500);
        let mut bytes = Vec::new();
        for plaintext in sent.chunks(100) {
            bytes.extend(wire.record_of(&mut ours.1, plaintext).await);
        }

        let mut got = Vec::new();
        for piece in bytes.chunks(7) {
            wire.to_responder.write_all(piece).await.unwrap();
            // Only a read that finds bytes can lose them.
            let source = &theirs.0.records.source;
            soon(source.readable()).await.unwrap();
            tokio::select! {
                biased;
                chunk = theirs.0.read() => got.extend(chunk.unwrap().unwrap()),
                () = std::future::ready(()) => {}
            }
        }
        let rest = take(&mut theirs.0, sent.len() - got.len()).await;

        got.extend(rest);
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn a_writer_whose_write_was_cancelled_refuses_the_next() {
        let (mut ours, _theirs) = pair().await;
        let more_than_the_sockets_hold = vec![0; 64 << 20];

        tokio::select! {
            biased;
            written = ours.1.write_all(&more_than_the_sockets_hold) => {
                panic!("nobody reads, yet all was written: {written:?}")
            }
            () = yield_now() => {}
        }

        let error = soon(ours.1.write_all(b"next")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    /// The wire between two ends, in the hands of the test.
    struct Wire {
        from_initiator: TcpStream,
        to_responder: TcpStream,
    }

    impl Wire {
        /// What the initiator's writer sends for `plaintext`, which goes no further.
        async fn record_of(&mut self, writer: &mut NoiseWriter, plaintext: &[u8]) -> Vec<u8> {
            writer.write_all(plaintext).await.unwrap();
            read_record(&mut self.from_initiator).await
        }
    }

    async fn pair() -> (Halves, Halves) {
        let (initiator, responder) = tcp_pair().await;
        let (ours, theirs) = tokio::join!(
            soon(initiate(initiator, &PSK, CLUSTER)),
            soon(respond(responder, &[PSK], CLUSTER))
        );
        (ours.unwrap(), theirs.unwrap())
    }

    async fn wired_pair() -> (Halves, Halves, Wire) {
        let (initiator, mut from_initiator) = tcp_pair().await;
        let (mut to_responder, responder) = tcp_pair().await;
        let relay = async {
            relay_record(&mut from_initiator, &mut to_responder).await;
            relay_record(&mut to_responder, &mut from_initiator).await;
            relay_record(&mut from_initiator, &mut to_responder).await;
        };
        let (ours, theirs, ()) = tokio::join!(
            soon(initiate(initiator, &PSK, CLUSTER)),
            soon(respond(responder, &[PSK], CLUSTER)),
            relay
        );
        let wire = Wire {
            from_initiator,
            to_responder,
        };
        (ours.unwrap(), theirs.unwrap(), wire)
    }

    async fn respond_to(first_bytes: &[u8]) -> HandshakeError {
        let (mut peer, responder) = tcp_pair().await;
        peer.write_all(first_bytes).await.unwrap();
        peer.shutdown().await.unwrap();
        soon(respond(responder, &[OTHER_PSK, PSK], CLUSTER))
            .await
            .err()
            .unwrap()
    }

    /// Lets a test that would wait for ever fail instead.
    async fn soon<T>(outcome: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), outcome).await.unwrap()
    }

    async fn chunk(reader: &mut NoiseReader) -> Bytes {
        soon(reader.read()).await.unwrap().unwrap()
    }

    async fn fault(reader: &mut NoiseReader) -> io::ErrorKind {
        soon(reader.read()).await.unwrap_err().kind()
    }

    async fn take(reader: &mut NoiseReader, size: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < size {
            let chunk = chunk(reader).await;
            assert!(!chunk.is_empty() && chunk.len() <= READ_BUFFER_LEN);
            got.extend_from_slice(&chunk);
        }
        got
    }

    async fn relay_record(from: &mut TcpStream, to: &mut TcpStream) {
        to.write_all(&read_record(from).await).await.unwrap();
    }

    async fn read_record(stream: &mut TcpStream) -> Vec<u8> {
        let length = stream.read_u16().await.unwrap();
        let mut record = vec![0; HEADER_LEN + usize::from(length)];
        record[..HEADER_LEN].copy_from_slice(&length.to_be_bytes());
        stream.read_exact(&mut record[HEADER_LEN..]).await.unwrap();
        record
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(connect, listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    fn pattern(size: usize) -> Vec<u8> {
        (0..size).map(|i| (i % 251) as u8).collect()
    }
}

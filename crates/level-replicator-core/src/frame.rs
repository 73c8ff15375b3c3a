//! Frames: how messages are cut out of a stream of bytes.
//!
//! ```text
//! frame   = version:u8 kind:u8 length:u24 checksum:u32 payload
//! kind    = the message's kind, plus 0x80 if the payload is compressed
//! payload = bytes, or raw-length:varint lz4-block if compressed
//! ```
//!
//! The checksum covers everything else in the frame, how many frames went before it on the link, and,
//! but for the first frame, which process it is for. So it finds what is damaged between the two ends,
//! what is lost, repeated or out of order, and what was said to somebody else and is played again:
//! what a peer sends depends on what it was told. Against intent the transport's encryption stands.

use bytes::{Buf, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::codec::{DecodeError, Reader, put_varint};
use crate::limits::{COMPRESS_FROM, FRAME_PAYLOAD_MAX, LINK_BUFFER_MAX};
use crate::mistake::{Mistake, is_planted};

/// The version of the wire protocol that is spoken here, and the only one understood.
pub const WIRE_VERSION: u8 = 1;

const HEADER_BYTES: usize = 9;
const COMPRESSED: u8 = 0x80;

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is of a version that is not spoken here.
    #[error("frame of version {theirs}, but this replica speaks version {WIRE_VERSION}")]
    Version {
        /// The frame's version.
        theirs: u8,
    },
    /// The header promises more than a frame may hold.
    #[error("frame of {size} bytes exceeds the limit of {FRAME_PAYLOAD_MAX}")]
    Oversized {
        /// The promised size.
        size: u64,
    },
    /// The checksum does not fit: the frame is damaged, or not the one that comes next.
    #[error("frame fails its checksum: damaged, lost, repeated or out of order")]
    Checksum,
    /// The payload does not decompress to what it promises.
    #[error("compressed frame is damaged")]
    Compression,
}

impl From<DecodeError> for FrameError {
    fn from(_: DecodeError) -> Self {
        FrameError::Compression
    }
}

/// A message's kind and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which message it is.
    pub kind: u8,
    /// Its fields.
    pub payload: Bytes,
}

/// Frames on their way out of one end of a link.
#[derive(Debug, Default)]
pub struct FrameWriter {
    bytes: Vec<u8>,
    /// How many frames have been made for this link.
    made: u64,
    listener: u64,
}

impl FrameWriter {
    /// From now on frames are for the process with this random number; the first frame of a link is
    /// for anybody.
    pub fn bind(&mut self, listener: u64) {
        self.listener = listener;
    }

    /// Appends a frame. The payload is compressed if it is large and that makes it smaller.
    ///
    /// # Panics
    ///
    /// If the payload is over [`FRAME_PAYLOAD_MAX`]: whoever makes messages keeps to that bound.
    pub fn push(&mut self, kind: u8, payload: &[u8]) {
        assert!(payload.len() <= FRAME_PAYLOAD_MAX, "oversized message");
        let compressed = compress(payload);
        let (kind, payload) = match &compressed {
            Some(smaller) => (kind | COMPRESSED, &smaller[..]),
            None => (kind, payload),
        };
        let length = (payload.len() as u32).to_be_bytes();
        let head = [WIRE_VERSION, kind, length[1], length[2], length[3]];
        let checksum = checksum(&head, self.made, self.listener, payload);
        self.made += 1;
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(&checksum.to_be_bytes());
        self.bytes.extend_from_slice(payload);
    }

    /// Whether no frame waits to be taken.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The frames made since they were last taken.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

fn compress(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() < COMPRESS_FROM {
        return None;
    }
    let block = lz4_flex::block::compress(payload);
    let mut out = Vec::with_capacity(block.len() + 4);
    put_varint(&mut out, payload.len() as u64);
    out.extend_from_slice(&block);
    // Less than an eighth saved is not worth the other side's work.
    (out.len() < payload.len() - payload.len() / 8).then_some(out)
}

fn decompress(payload: Bytes) -> Result<Bytes, FrameError> {
    let mut reader = Reader::new(payload, "compressed frame");
    let size = reader.varint()?;
    if size > FRAME_PAYLOAD_MAX as u64 {
        return Err(FrameError::Oversized { size });
    }
    let block = reader.bytes(reader.remaining())?;
    let raw = lz4_flex::block::decompress(&block, size as usize);
    match raw {
        Ok(raw) if raw.len() as u64 == size => Ok(raw.into()),
        _ => Err(FrameError::Compression),
    }
}

/// `number` tells how many frames go before this one on its link.
fn checksum(head: &[u8; 5], number: u64, listener: u64, payload: &[u8]) -> u32 {
    let head = head
        .iter()
        .fold(0, |seed, &byte| seed << 8 | u64::from(byte));
    let is_for_anybody = number == 0 || is_planted(Mistake::FramesForAnybody);
    let listener = if is_for_anybody { 0 } else { listener };
    let is_unnumbered = is_planted(Mistake::FramesUnnumbered);
    let number = if is_unnumbered { 0 } else { number };
    xxh3_64_with_seed(payload, head ^ number.rotate_left(40) ^ listener) as u32
}

/// Puts frames together from the pieces in which bytes arrive.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: BytesMut,
    /// How many frames have come over this link.
    came: u64,
    listener: u64,
}

impl FrameReader {
    /// Reads what is said to the process with this random number.
    pub fn new(listener: u64) -> FrameReader {
        FrameReader {
            listener,
            ..FrameReader::default()
        }
    }

    /// Takes bytes as they came. Frames should be taken out before more is put in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for the rest of their frame.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole frame; `None` until more bytes have come.
    ///
    /// # Errors
    ///
    /// The header is checked as soon as it is there, before the payload is waited for. After an
    /// error the stream has no meaning any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(&theirs) = self.buffer.first()
            && theirs != WIRE_VERSION
        {
            return Err(FrameError::Version { theirs });
        }
        if self.buffer.len() < HEADER_BYTES {
            return Ok(None);
        }
        let mut head = [0; 5];
        head.copy_from_slice(&self.buffer[..5]);
        let size = u32::from_be_bytes([0, head[2], head[3], head[4]]) as usize;
        if size > FRAME_PAYLOAD_MAX {
            return Err(FrameError::Oversized { size: size as u64 });
        }
        debug_assert!(HEADER_BYTES + size <= LINK_BUFFER_MAX);
        if self.buffer.len() < HEADER_BYTES + size {
            return Ok(None);
        }

        let mut frame = self.buffer.split_to(HEADER_BYTES + size);
        frame.advance(5);
        let expected = frame.get_u32();
        let payload = frame.freeze();
        if checksum(&head, self.came, self.listener, &payload) != expected {
            return Err(FrameError::Checksum);
        }
        self.came += 1;
        let kind = head[1];
        if kind & COMPRESSED == 0 {
            return Ok(Some(Frame { kind, payload }));
        }
        let payload = decompress(payload)?;
        let kind = kind & !COMPRESSED;
        Ok(Some(Frame { kind, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut writer = FrameWriter::default();
        writer.push(kind, payload);
        writer.take()
    }

    #[test]
    fn a_frame_that_is_lost_repeated_or_out_of_order_is_noticed() {
        let mut writer = FrameWriter::default();
        let frames = [(); 3].map(|()| {
            writer.push(3, b"the same");
            writer.take()
        });
        for wrong in [vec![1], vec![0, 0], vec![0, 2], vec![0, 1, 1]] {
            let mut reader = FrameReader::default();
            let (last, good) = wrong.split_last().expect("frames");
            for &frame in good {
                reader.push(&frames[frame]);
                assert!(matches!(reader.next_frame(), Ok(Some(_))), "{wrong:?}");
            }
            reader.push(&frames[*last]);
            assert_eq!(reader.next_frame(), Err(FrameError::Checksum), "{wrong:?}");
        }
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let mut writer = FrameWriter::default();
        writer.push(3, b"three");
        writer.push(4, &[7; 100_000]);
        let bytes = writer.take();
        let mut reader = FrameReader::default();
        let mut frames = Vec::new();
        for piece in bytes.chunks(13) {
            reader.push(piece);
            while let Some(frame) = reader.next_frame().expect("whole frames") {
                frames.push(frame);
            }
        }
        assert_eq!(frames.len(), 2);
        assert_eq!(&frames[0].payload[..], b"three");
        assert_eq!(&frames[1].payload[..], &[7; 100_000][..]);
        assert_eq!(reader.waiting(), 0);
    }

    #[test]
    fn what_was_said_to_one_process_is_not_heard_by_another() {
        let mut writer = FrameWriter::default();
        writer.push(3, b"to anybody");
        writer.bind(7);
        writer.push(3, b"to 7");
        let bytes = writer.take();
        for (listener, hears) in [(7, true), (8, false)] {
            let mut reader = FrameReader::new(listener);
            reader.push(&bytes);
            assert!(matches!(reader.next_frame(), Ok(Some(_))));
            assert_eq!(reader.next_frame().is_ok(), hears);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = frame(3, b"payload");
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut reader = FrameReader::default();
            reader.push(&bytes);
            assert!(!matches!(reader.next_frame(), Ok(Some(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_at_the_limit_passes_and_one_over_it_is_refused_by_its_header() {
        let bytes = frame(3, &vec![9; FRAME_PAYLOAD_MAX]);
        let mut reader = FrameReader::default();
        reader.push(&bytes);
        assert!(matches!(reader.next_frame(), Ok(Some(_))));

        let size = (FRAME_PAYLOAD_MAX + 1) as u32;
        let length = size.to_be_bytes();
        reader.push(&[WIRE_VERSION, 3, length[1], length[2], length[3], 0, 0, 0, 0]);
        let size = u64::from(size);
        assert_eq!(reader.next_frame(), Err(FrameError::Oversized { size }));
    }
}

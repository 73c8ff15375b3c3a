//! Bytes of a link to frames.
//!
//! What must hold: frames do not depend on how the bytes were cut, none is over its bound, little
//! waits, and a frame that was read can be written and read again.

use bytes::Bytes;
use fastrand::Rng;
use level_replicator_core::frame::{Frame, FrameError, FrameReader, FrameWriter};
use level_replicator_core::limits::{FRAME_PAYLOAD_MAX, LINK_BUFFER_MAX};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::mutation::mutate;
use crate::seeds;
use crate::target::{Outcome, Target};

/// Frames out of a stream. An input is the bytes of one end of a link, from its beginning.
pub const TARGET: Target = Target {
    name: "frame",
    body: run,
    seeds: seeds::streams,
    remake: Some(reseal),
    deep_percent_min: 20,
    outcomes_min: 6,
};

/// Runs one input.
pub fn run(input: &[u8]) -> Outcome {
    let (frames, end) = read(std::iter::once(input));
    let piece = 1 + usize::from(input.last().copied().unwrap_or(0)) % 61;
    let in_pieces = read(input.chunks(piece));
    assert_eq!(
        in_pieces,
        (frames.clone(), end.clone()),
        "frames depend on how their bytes are cut"
    );
    check_round_trip(&frames);

    let name = match &end {
        None => format!("{} frames", frames.len().min(9)),
        Some(error) => format!("{} frames, then {}", frames.len().min(9), name(error)),
    };
    Outcome {
        is_deep: !frames.is_empty(),
        name,
    }
}

fn name(error: &FrameError) -> &'static str {
    match error {
        FrameError::Version { .. } => "version",
        FrameError::Oversized { .. } => "oversized",
        FrameError::Checksum => "checksum",
        FrameError::Compression => "compression",
        _ => "another error",
    }
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<FrameError>) {
    let mut reader = FrameReader::default();
    let mut frames = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.payload.len() <= FRAME_PAYLOAD_MAX, "oversized frame");
                    assert!(frame.kind < 0x80, "the bit of compression in a kind");
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(reader.waiting() <= LINK_BUFFER_MAX, "too much waits");
    }
    (frames, None)
}

fn check_round_trip(frames: &[Frame]) {
    let mut writer = FrameWriter::default();
    for frame in frames {
        writer.push(frame.kind, &frame.payload);
    }
    let bytes = writer.take();
    let again = read(std::iter::once(&bytes[..]));
    assert_eq!(again, (frames.to_vec(), None), "frames written again");
}

/// Takes frames out of a stream whatever their checksums say, changes one of them, and seals all anew.
fn reseal(random: &mut Rng, input: &[u8]) -> Vec<u8> {
    let mut frames = unseal(input);
    if frames.is_empty() {
        return mutate(random, input, input);
    }
    let at = random.usize(..frames.len());
    match random.u8(..8) {
        0 => frames.swap(at, 0),
        1 => frames.insert(at, frames[random.usize(..frames.len())].clone()),
        2 => frames.truncate(at + 1),
        3 => frames[at].kind = random.u8(..),
        _ => {
            let payload = mutate(random, &frames[at].payload, input);
            frames[at].payload = payload.into();
        }
    }
    let mut writer = FrameWriter::default();
    for frame in &frames {
        writer.push(frame.kind, &frame.payload);
    }
    writer.take()
}

/// The frames of a stream with their payloads as they stand there, compressed or not.
fn unseal(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let size = u32::from_be_bytes([0, head[2], head[3], head[4]]) as usize;
        let (payload, rest) = rest.split_at(size.min(rest.len()));
        frames.push(Frame {
            kind: head[1],
            payload: Bytes::copy_from_slice(payload),
        });
        bytes = rest;
    }
    frames
}

/// Takes the first frame off what a replica sent, and checks its seal as docs/protocol.md has it.
/// `number` frames went before it, and `listener` is the process that it is for.
pub(crate) fn take_sealed(bytes: &[u8], number: u64, listener: u64) -> (Frame, &[u8]) {
    let (head, rest) = bytes.split_at(9);
    let size = u32::from_be_bytes([0, head[2], head[3], head[4]]) as usize;
    let (payload, rest) = rest.split_at(size);
    let (head, given) = head.split_at(5);
    let seed = head
        .iter()
        .fold(0, |seed, &byte| seed << 8 | u64::from(byte));
    let seal = |seed| (xxh3_64_with_seed(payload, seed) as u32).to_be_bytes();
    let listener = if number == 0 { 0 } else { listener };
    assert_eq!(
        given,
        seal(seed ^ number.rotate_left(40) ^ listener),
        "the seal of frame {number}"
    );

    // As the first frame of a link it can be read by itself.
    let mut reader = FrameReader::default();
    reader.push(&[head, &seal(seed), payload].concat());
    let frame = reader.next_frame().expect("a replica sends good frames");
    (frame.expect("a replica sends whole frames"), rest)
}

//! What is changed in an input, knowing nothing of what it means.

use fastrand::Rng;

use crate::fields::TURNING_NUMBERS;

/// Longest input that is made: long enough for every format, short enough to try many.
pub const INPUT_BYTES_MAX: usize = 8 << 10;

/// An input with a few changes: one most often, rarely more than eight. `other` lends pieces of itself.
pub fn mutate(random: &mut Rng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    change(random, &mut bytes, other);
    while random.u8(..8) < 5 {
        change(random, &mut bytes, other);
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn change(random: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = random.usize(..=bytes.len());
    match random.u8(..12) {
        0 => flip_bit(random, bytes, at),
        1 => set_byte(bytes, at, random.u8(..)),
        2 => step_byte(random, bytes, at),
        3 => insert_some(random, bytes, at),
        4 | 5 => remove_some(random, bytes, at),
        6 => splice(random, bytes, at, other),
        7 => put_turning_number(random, bytes, at),
        8 => set_length(random, bytes, at),
        9 => repeat_block(random, bytes, at),
        10 => copy_within(random, bytes, at),
        _ => bytes.truncate(at),
    }
}

/// A length that is small most often.
fn some_length(random: &mut Rng, limit: usize) -> usize {
    let reach = [2, 8, 32, 512][random.usize(..4)];
    random.usize(..=limit.min(reach))
}

fn flip_bit(random: &mut Rng, bytes: &mut [u8], at: usize) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << random.u8(..8);
    }
}

fn set_byte(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}

fn step_byte(random: &mut Rng, bytes: &mut [u8], at: usize) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_add(random.u8(..9)).wrapping_sub(4);
    }
}

fn insert_some(random: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let alike = random.bool().then(|| random.u8(..));
    let len = some_length(random, INPUT_BYTES_MAX);
    let inserted: Vec<u8> = (0..len)
        .map(|_| alike.unwrap_or_else(|| random.u8(..)))
        .collect();
    bytes.splice(at..at, inserted);
}

fn remove_some(random: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let len = some_length(random, bytes.len() - at);
    bytes.drain(at..at + len);
}

/// Puts a piece of another input in, or in place of the rest.
fn splice(random: &mut Rng, bytes: &mut Vec<u8>, at: usize, other: &[u8]) {
    let from = random.usize(..=other.len());
    if random.bool() {
        bytes.truncate(at);
        bytes.extend_from_slice(&other[from..]);
    } else {
        let len = some_length(random, other.len() - from);
        bytes.splice(at..at, other[from..from + len].iter().copied());
    }
}

/// Overwrites bytes by a number at which something turns, in one of its widths or as a varint.
fn put_turning_number(random: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let number = TURNING_NUMBERS[random.usize(..TURNING_NUMBERS.len())];
    let mut written = Vec::new();
    let width = [0, 1, 2, 3, 4, 8][random.usize(..6)];
    match width {
        0 => level_replicator_core::codec::put_varint(&mut written, number),
        _ => written.extend_from_slice(&number.to_be_bytes()[8 - width..]),
    }
    let end = if random.bool() {
        (at + written.len()).min(bytes.len())
    } else {
        at
    };
    bytes.splice(at..end, written);
}

/// Makes a byte, or three, tell how much follows, or one more or less than that.
fn set_length(random: &mut Rng, bytes: &mut [u8], at: usize) {
    let wide = random.bool();
    let width = if wide { 3 } else { 1 };
    let follows = bytes.len().saturating_sub(at + width);
    let length = (follows + random.usize(..3)).saturating_sub(1) as u32;
    let written = &length.to_be_bytes()[4 - width..];
    if let Some(place) = bytes.get_mut(at..at + width) {
        place.copy_from_slice(written);
    }
}

fn repeat_block(random: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let len = some_length(random, bytes.len() - at);
    let block = bytes[at..at + len].to_vec();
    let times = [1, 2, 3, 40][random.usize(..4)];
    let copies = block.repeat(times);
    let room = INPUT_BYTES_MAX.saturating_sub(bytes.len());
    bytes.splice(at..at, copies.into_iter().take(room));
}

fn copy_within(random: &mut Rng, bytes: &mut [u8], at: usize) {
    let len = some_length(random, bytes.len() - at);
    let from = random.usize(..=bytes.len() - len);
    bytes.copy_within(from..from + len, at);
}

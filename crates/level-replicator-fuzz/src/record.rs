//! Records: rows of the disk, and records packed for the wire.
//!
//! What must hold: what was read can be written and read again, no part is over its bound, and the
//! short way to a value finds what the long one does.

use bytes::Bytes;
use level_replicator_core::clock::{Dot, Stamp, WriterId};
use level_replicator_core::frame::FrameReader;
use level_replicator_core::frame::FrameWriter;
use level_replicator_core::limits::{
    FRAME_PAYLOAD_MAX, KEY_BYTES_MAX, KEYS_PER_MESSAGE_BYTES_MAX, SIBLINGS_MAX, STAMP_MAX,
    VALUE_BYTES_CEILING,
};
use level_replicator_core::message::{Message, encode_records};
use level_replicator_core::packing::{RecordsEncoder, decode_records};
use level_replicator_core::record::{
    Content, Key, Record, Tally, Version, decode_row, encode_row, single_value,
};
use level_replicator_core::writers::Writers;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::fields::Fields;
use crate::seeds;
use crate::target::{Outcome, Target, decode_error_name};

/// Rows and packed records. An input is a byte that says what the rest is: a row without its
/// checksum, a whole row, packed records, a tally, or fields of which good records are made.
pub const TARGET: Target = Target {
    name: "record",
    body: run,
    seeds: seeds::records,
    remake: None,
    deep_percent_min: 10,
    outcomes_min: 12,
};

pub(crate) const BARE_ROW: u8 = 0;
pub(crate) const WHOLE_ROW: u8 = 1;
pub(crate) const PACKED: u8 = 2;
pub(crate) const TALLY: u8 = 3;
pub(crate) const FIELDS: u8 = 4;

/// Few enough for their keys to fit a message.
const MADE_RECORDS_MAX: usize = 1_000;

/// The key of the golden rows.
const KEY: &[u8] = b"key";

/// Runs one input.
pub fn run(input: &[u8]) -> Outcome {
    let mut fields = Fields::new(input);
    match fields.below(5) {
        BARE_ROW => row(seal_row(KEY, fields.rest())),
        WHOLE_ROW => row(Bytes::copy_from_slice(fields.rest())),
        PACKED => packed(Bytes::copy_from_slice(fields.rest())),
        TALLY => tally(Bytes::copy_from_slice(fields.rest())),
        _ => made(&mut fields),
    }
}

/// A row of the data table, with the checksum that docs/storage.md describes.
pub(crate) fn seal_row(key: &[u8], body: &[u8]) -> Bytes {
    let checksum = xxh3_64_with_seed(body, xxh3_64(key)) as u32;
    [body, &checksum.to_be_bytes()].concat().into()
}

fn row(row: Bytes) -> Outcome {
    let writers = seeds::writers();
    let single = single_value(KEY, &row);
    match decode_row(KEY, row.clone(), &writers) {
        Err(error) => Outcome::refused(decode_error_name(&error)),
        Ok(record) => {
            let single = single.expect("a good row has a value, or says that it must be decoded");
            if let Some(content) = single {
                let contents: Vec<_> = record.live.iter().map(|live| &live.content).collect();
                assert_eq!(contents, [&content], "two ways to one value");
                assert!(record.seen.is_empty(), "a single version with a history");
            }
            check_row(&row, &record, &writers);
            let (live, seen) = (record.live.len(), record.seen.len());
            Outcome::deep(format!("row of {} and {}", live.min(5), seen.min(5)))
        }
    }
}

fn check_row(row: &Bytes, record: &Record, writers: &Writers) {
    assert!(record.live.len() <= SIBLINGS_MAX, "many live versions");
    let values: usize = record
        .puts()
        .filter_map(|put| put.value())
        .map(Bytes::len)
        .sum();
    assert!(values <= row.len(), "more values than bytes");
    let ord = |writer: WriterId| writers.ord(writer).expect("only known writers are read");
    let again = encode_row(KEY, record, ord);
    let read = decode_row(KEY, again.clone(), writers).expect("a row that was just written");
    assert_eq!(&read, record, "a row written again");
    assert_eq!(encode_row(KEY, &read, ord), again, "a row has one form");
    let mut sum = Tally::default();
    sum.add(record.tally(KEY));
    sum.subtract(record.tally(KEY));
    assert_eq!(sum, Tally::default(), "a tally is a sum");
}

fn packed(payload: Bytes) -> Outcome {
    let size = payload.len();
    match decode_records(payload) {
        Err(error) => Outcome::refused(decode_error_name(&error)),
        Ok(records) => {
            check_packed(&records, size);
            let general = records.iter().any(|(_, record)| record.live.len() != 1);
            let form = if general { "general" } else { "simple" };
            Outcome::deep(format!("{} {form} records", records.len().min(5)))
        }
    }
}

/// Checks what came out of `size` bytes of packed records.
pub(crate) fn check_packed(records: &[(Key, Record)], size: usize) {
    let keys: usize = records.iter().map(|(key, _)| key.len()).sum();
    assert!(keys <= KEYS_PER_MESSAGE_BYTES_MAX, "many keys");
    assert!(records.len() <= size, "more records than bytes");
    let mut values = 0;
    for (key, record) in records {
        assert!(
            (1..=KEY_BYTES_MAX).contains(&key.len()),
            "a key out of bounds"
        );
        assert!(record.live.len() <= SIBLINGS_MAX, "many live versions");
        assert!(
            record.live.is_sorted_by(|a, b| a.dot < b.dot),
            "live versions out of order"
        );
        assert!(
            record.seen.iter().all(|dot| dot.seq > 0),
            "a write without a number"
        );
        for version in &record.live {
            assert!(version.dot.seq > 0, "a write without a number");
            assert!(
                version.stamp.as_micros() <= STAMP_MAX,
                "a stamp out of bounds"
            );
            let len = version.value().map_or(0, Bytes::len);
            assert!(len <= VALUE_BYTES_CEILING, "a value out of bounds");
            values += len;
        }
    }
    assert!(values <= size, "more values than bytes");

    let mut encoder = RecordsEncoder::default();
    for (key, record) in records {
        encoder.push(key, record);
    }
    let payload = encoder.finish();
    let again = decode_records(payload.clone().into());
    assert_eq!(again.as_deref(), Ok(records), "records packed again");
    if payload.len() > FRAME_PAYLOAD_MAX {
        return;
    }
    let mut writer = FrameWriter::default();
    encode_records(payload, &mut writer);
    let mut reader = FrameReader::default();
    reader.push(&writer.take());
    let frame = reader
        .next_frame()
        .expect("a good frame")
        .expect("a whole frame");
    let message = Message::decode(frame).expect("a good message");
    assert_eq!(
        message,
        Message::Records(records.to_vec()),
        "records sent again"
    );
}

fn tally(bytes: Bytes) -> Outcome {
    match Tally::from_bytes(bytes.clone()) {
        Err(error) => Outcome::refused(decode_error_name(&error)),
        Ok(tally) => {
            assert_eq!(tally.to_bytes(), bytes, "a tally has one form");
            Outcome::deep("tally")
        }
    }
}

/// Whatever good records are packed, they must come out again.
fn made(fields: &mut Fields<'_>) -> Outcome {
    let mut records = Vec::new();
    while !fields.is_over() && records.len() < MADE_RECORDS_MAX {
        let form = fields.byte();
        let repeats = if form & 0x80 == 0 { 1 } else { 16 };
        let key_len = if form & 1 == 0 { 1 } else { fields.byte() };
        let (writer, mut seq) = (u64::from(form >> 1 & 3), fields.number().max(1));
        let value = vec![
            form;
            if form & 8 == 0 {
                0
            } else {
                usize::from(fields.byte())
            }
        ];
        let stamp = Stamp::from_micros(fields.number());
        let content = if form & 0x90 == 0x80 {
            Content::PutUntil(value.into(), Stamp::from_micros(fields.number()))
        } else if form & 16 == 0 {
            Content::Put(value.into())
        } else {
            Content::Delete
        };
        let seen = (form & 0x60 == 0x60).then(|| Dot {
            writer: WriterId(9),
            seq: fields.number().max(1),
        });
        for repeat in 0..repeats {
            let dot = Dot {
                writer: WriterId(writer),
                seq,
            };
            let record = Record {
                live: vec![Version {
                    dot,
                    stamp,
                    content: content.clone(),
                }],
                seen: seen.into_iter().collect(),
            };
            records.push((
                vec![form ^ repeat; usize::from(key_len.max(1))].into(),
                record,
            ));
            seq = seq.saturating_add(1);
        }
    }
    check_packed(&records, usize::MAX);
    Outcome::deep(format!("{} made", records.len().min(5)))
}

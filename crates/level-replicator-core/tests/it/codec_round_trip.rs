//! What is written is read back the same, and what nobody wrote is refused without harm.

use bytes::Bytes;
use level_replicator_core::announcement::Announcement;
use level_replicator_core::clock::{Clock, Dot, Known, Stamp, WriterId};
use level_replicator_core::codec::{Reader, put_prefixed, put_varint};
use level_replicator_core::frame::{Frame, FrameReader, FrameWriter};
use level_replicator_core::limits::{FRAME_PAYLOAD_MAX, HEADS_PER_MESSAGE, STAMP_MAX};
use level_replicator_core::message::{Heads, Message, encode_records};
use level_replicator_core::packing::decode_records;
use level_replicator_core::record::{
    Content, Key, Record, Tally, Version, decode_row, encode_row, single_value,
};
use level_replicator_core::writers::Descriptor;
use proptest::prelude::*;

use crate::samples::{delete, descriptors, dot, messages, put, record, siblings, writers};

const RECORDS: u8 = 4;

fn through_a_frame(message: &Message) -> Message {
    let mut writer = FrameWriter::default();
    message.encode(&mut writer);
    let mut reader = FrameReader::default();
    reader.push(&writer.take());
    let frame = reader
        .next_frame()
        .expect("a good frame")
        .expect("a whole frame");
    assert_eq!(reader.waiting(), 0);
    Message::decode(frame).expect("a good message")
}

#[test]
fn every_message_survives_the_round_trip() {
    for (name, message) in messages() {
        assert_eq!(through_a_frame(&message), message, "{name}");
    }
}

#[test]
fn every_cut_of_every_message_is_refused() {
    for (name, message) in messages() {
        let mut writer = FrameWriter::default();
        message.encode(&mut writer);
        let mut reader = FrameReader::default();
        reader.push(&writer.take());
        let Frame { kind, payload } = reader.next_frame().expect("good").expect("whole");
        // A fragment is any bytes.
        for len in (1..payload.len()).filter(|_| name != "fragment") {
            let payload = payload.slice(..len);
            assert!(
                Message::decode(Frame { kind, payload }).is_err(),
                "{name} cut to {len}"
            );
        }
    }
}

fn content() -> impl Strategy<Value = Content> {
    let value = proptest::collection::vec(any::<u8>(), 0..12).prop_map(Bytes::from);
    let until = prop_oneof![1_000..1_020u64, 0..=STAMP_MAX];
    let expiring = (value.clone(), until)
        .prop_map(|(value, until)| Content::PutUntil(value, Stamp::from_micros(until)));
    prop_oneof![3 => value.prop_map(Content::Put), 1 => expiring, 1 => Just(Content::Delete)]
}

fn version() -> impl Strategy<Value = Version> {
    let seq = prop_oneof![1..20u64, 1..=u64::MAX];
    let stamp = prop_oneof![1_000..1_020u64, 0..=STAMP_MAX];
    (1..6u64, seq, stamp, content()).prop_map(|(writer, seq, stamp, content)| Version {
        dot: dot(writer, seq),
        stamp: Stamp::from_micros(stamp),
        content,
    })
}

fn any_record() -> impl Strategy<Value = Record> {
    let seen = proptest::collection::vec((1..6u64, 1..=u64::MAX), 0..4);
    let general =
        (proptest::collection::vec(version(), 0..4), seen).prop_map(|(mut live, seen)| {
            live.sort_by_key(|version| version.dot);
            live.dedup_by_key(|version| version.dot);
            let seen = seen
                .into_iter()
                .map(|(writer, seq)| dot(writer, seq))
                .collect();
            Record { live, seen }
        });
    let simple = version().prop_map(|version| record(&[version], &[]));
    prop_oneof![2 => simple, 1 => general]
}

fn any_key() -> impl Strategy<Value = Key> {
    proptest::string::string_regex("[ab]{1,6}")
        .expect("a pattern")
        .prop_map(Key::from)
}

proptest! {
    #![proptest_config(crate::samples::proptest_config())]

    #[test]
    fn records_survive_the_round_trip_whatever_stands_before_them(
        records in proptest::collection::vec((any_key(), any_record()), 0..20)
    ) {
        let message = Message::Records(records);
        prop_assert_eq!(through_a_frame(&message), message);
    }

    #[test]
    fn a_row_survives_the_round_trip(key in any_key(), record in any_record()) {
        let writers = writers();
        let row = encode_row(&key, &record, |writer| writers.ord(writer).expect("described"));
        let single = match (&record.live[..], record.seen.is_empty()) {
            ([version], true) => Some(version.content.clone()),
            _ => None,
        };
        prop_assert_eq!(single_value(&key, &row), Ok(single));
        prop_assert_eq!(decode_row(&key, row, &writers), Ok(record));
    }

    #[test]
    fn heads_bring_a_peer_from_any_clock_to_any_later_one(
        told in proptest::collection::vec((0..5u64, 1..300u64, 0..20u64), 0..40),
        news in proptest::collection::vec((0..5u64, 1..300u64, 0..20u64), 0..40),
    ) {
        let mut clock = Clock::default();
        for (writer, first, more) in told {
            clock.insert_range(WriterId(writer), first..=first + more);
        }
        let told = clock.clone();
        for (writer, first, more) in news {
            clock.insert_range(WriterId(writer), first..=first + more);
        }
        let mut theirs = told.clone();
        for heads in Heads::changed(&clock, &told) {
            let message = Message::Clock { heads, asks: false, more: false };
            let Message::Clock { heads, .. } = through_a_frame(&message) else {
                panic!("another message");
            };
            heads.update(&mut theirs);
        }
        prop_assert_eq!(theirs.digest(), clock.digest());
        prop_assert_eq!(theirs, clock);
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read_and_never_more(
        kind in 0..20u8, bytes in proptest::collection::vec(any::<u8>(), 0..300)
    ) {
        let mut reader = FrameReader::default();
        reader.push(&bytes);
        while let Ok(Some(frame)) = reader.next_frame() {
            let _ = Message::decode(frame);
        }
        let bytes = Bytes::from(bytes);
        let _ = decode_row(b"key", bytes.clone(), &writers());
        let _ = single_value(b"key", &bytes);
        let _ = Announcement::decode(&bytes, &[3; 32]);
        let _ = Tally::from_bytes(bytes.clone());
        let _ = Message::decode(Frame { kind, payload: bytes });
    }

    #[test]
    fn a_message_with_a_few_bytes_changed_never_panics(
        which in 0..11usize,
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let (_, message) = &messages()[which];
        let mut writer = FrameWriter::default();
        message.encode(&mut writer);
        let mut reader = FrameReader::default();
        reader.push(&writer.take());
        let Frame { kind, payload } = reader.next_frame().expect("good").expect("whole");
        let mut payload = payload.to_vec();
        for (place, byte) in changes {
            let len = payload.len().max(1);
            if let Some(changed) = payload.get_mut(place % len) {
                *changed = byte;
            }
        }
        let frame = Frame { kind, payload: payload.into() };
        if let Ok(Message::Clock { heads, .. }) = Message::decode(frame) {
            let mut clock = Clock::default();
            heads.update(&mut clock);
            let _ = (clock.digest(), Clock::default().difference(&clock));
        }
    }

    #[test]
    fn a_row_with_a_changed_byte_is_never_served(place in any::<usize>(), flip in 1..=255u8) {
        let writers = writers();
        let row = encode_row(b"key", &siblings(), |writer| writers.ord(writer).expect("described"));
        let mut damaged = row.to_vec();
        let place = place % damaged.len();
        damaged[place] ^= flip;
        prop_assert!(decode_row(b"key", damaged.into(), &writers).is_err());
        prop_assert!(decode_row(b"other", row, &writers).is_err());
    }
}

#[test]
fn a_clock_of_many_ranges_travels_in_many_pieces() {
    let mut clock = Clock::default();
    for range in 0..3 * HEADS_PER_MESSAGE as u64 {
        clock.insert(dot(1, 5 + 2 * range));
    }
    for writer in 2..HEADS_PER_MESSAGE as u64 {
        clock.insert(dot(writer, 1));
        clock.insert(dot(writer, 9));
    }
    let pieces = Heads::changed(&clock, &Clock::default());
    assert!(pieces.len() > 4, "{} pieces", pieces.len());

    let mut theirs = Clock::default();
    for heads in pieces {
        let message = Message::Clock {
            heads,
            asks: false,
            more: true,
        };
        let Message::Clock { heads, .. } = through_a_frame(&message) else {
            panic!("another message");
        };
        heads.update(&mut theirs);
    }

    assert_eq!(theirs, clock);
}

#[test]
fn the_longest_message_of_each_bounded_kind_fits_a_frame() {
    let mut clock = Clock::default();
    for writer in 0..HEADS_PER_MESSAGE as u64 {
        clock.insert_range(WriterId(u64::MAX - writer), 1..=u64::MAX / 2);
        clock.insert(dot(u64::MAX - writer, u64::MAX));
    }
    for heads in Heads::changed(&clock, &Clock::default()) {
        let message = Message::Clock {
            heads,
            asks: true,
            more: true,
        };
        assert_eq!(through_a_frame(&message), message);
    }
}

#[test]
fn a_record_larger_than_a_frame_comes_out_of_its_fragments() {
    let large = Message::Records(vec![(
        Bytes::from_static(b"key"),
        record(&[put(1, 1, &vec![9; 3 * FRAME_PAYLOAD_MAX])], &[]),
    )]);
    let Message::Records(records) = &large else {
        panic!("just made");
    };
    let mut encoder = level_replicator_core::packing::RecordsEncoder::default();
    records
        .iter()
        .for_each(|(key, record)| encoder.push(key, record));
    let mut joined = Vec::new();
    let mut lasts = Vec::new();
    let mut writer = FrameWriter::default();
    encode_records(encoder.finish(), &mut writer);
    let mut reader = FrameReader::default();
    reader.push(&writer.take());
    while let Some(frame) = reader.next_frame().expect("good frames") {
        let Ok(Message::Fragment { bytes, last }) = Message::decode(frame) else {
            panic!("another message");
        };
        joined.extend_from_slice(&bytes);
        lasts.push(last);
    }
    assert_eq!(lasts, [false, false, false, true]);
    assert_eq!(decode_records(joined.into()).as_ref(), Ok(records));
}

/// Keys of one byte in one batch, without values: each takes three bytes after the first.
#[test]
fn the_smallest_records_survive_the_round_trip_however_many_they_are() {
    let stamped = |seq: u64, version: Version| Version {
        dot: dot(1, seq),
        stamp: Stamp::from_micros(7),
        ..version
    };
    for smallest in [put(1, 1, b""), delete(1, 1)] {
        let records = (1..=255).map(|byte| {
            let version = stamped(u64::from(byte), smallest.clone());
            (Key::from(vec![byte]), record(&[version], &[]))
        });
        let message = Message::Records(records.collect());
        assert_eq!(through_a_frame(&message), message);
    }
}

#[test]
fn a_number_after_the_greatest_is_not_the_next() {
    let records = [u64::MAX, 1].map(|seq| {
        let version = Version {
            dot: dot(1, seq),
            ..put(1, 1, b"value")
        };
        (
            Key::copy_from_slice(&seq.to_be_bytes()),
            record(&[version], &[]),
        )
    });
    let message = Message::Records(records.to_vec());
    assert_eq!(through_a_frame(&message), message);
}

#[test]
fn descriptors_survive_the_round_trip() {
    for descriptor in descriptors() {
        let mut reader = Reader::new(descriptor.to_bytes(), "descriptor");
        assert_eq!(Descriptor::decode(&mut reader), Ok(descriptor));
        assert_eq!(reader.finish(), Ok(()));
    }
}

#[test]
fn a_tally_survives_the_round_trip() {
    let tally = record(&[put(1, 1, b"a"), put(2, 1, b"b")], &[]).tally(b"key");
    assert_eq!(Tally::from_bytes(tally.to_bytes()), Ok(tally));
    let gone = record(&[delete(1, 2)], &[]).tally(b"key");
    assert_eq!((tally.keys, tally.conflicts, gone.deletes), (1, 1, 1));
}

/// A payload that promises a great number of things and holds none.
fn promising(front: &[u8], count: u64) -> Bytes {
    let mut payload = front.to_vec();
    put_varint(&mut payload, count);
    payload.into()
}

#[test]
fn a_count_that_the_bytes_do_not_bear_out_is_refused_before_anything_is_made_for_it() {
    // 2: writers; 3: a clock with its flags; 4: records without and with the table of writers;
    // 8: applied with flags and bytes; 9: addresses.
    for (kind, front) in [
        (2, &[][..]),
        (3, &[0]),
        (4, &[]),
        (4, &[0]),
        (8, &[0, 0]),
        (9, &[]),
    ] {
        for count in [1, 100, 4_096, 1 << 20, 1 << 40, u64::MAX] {
            let payload = promising(front, count);
            assert!(
                Message::decode(Frame { kind, payload }).is_err(),
                "{kind}: {count}"
            );
        }
    }
}

#[test]
fn a_frame_that_promises_to_become_huge_is_refused() {
    let mut payload = Vec::new();
    put_varint(&mut payload, u64::MAX);
    payload.extend_from_slice(&[0; 32]);
    let mut writer = FrameWriter::default();
    // The bit of compression in the kind, with a good checksum.
    writer.push(3 | 0x80, &payload);
    let mut reader = FrameReader::default();
    reader.push(&writer.take());
    assert!(reader.next_frame().is_err());
}

/// Records whose keys repeat a long prefix: four bytes more of it for every 65,000 that come out.
#[test]
fn keys_that_share_their_prefix_do_not_unfold_to_many_times_the_frame() {
    let long = vec![b'k'; 60_000];
    let mut payload = Vec::new();
    put_varint(&mut payload, 1);
    payload.extend_from_slice(&7u64.to_be_bytes());
    let count = 5_000u64;
    put_varint(&mut payload, count);
    for index in 0..count {
        // A simple delete; the first names its writer and number, the others follow.
        payload.push(if index == 0 { 1 | 2 } else { 1 | 2 | 4 | 8 });
        if index == 0 {
            put_varint(&mut payload, 0);
            put_prefixed(&mut payload, &long);
            put_varint(&mut payload, 0);
            put_varint(&mut payload, 1);
        } else {
            put_varint(&mut payload, long.len() as u64);
            put_prefixed(&mut payload, &[]);
        }
        put_varint(&mut payload, 0);
    }
    assert!(payload.len() < FRAME_PAYLOAD_MAX);
    let came = payload.len();

    let payload = Bytes::from(payload);
    if let Ok(Message::Records(records)) = Message::decode(Frame {
        kind: RECORDS,
        payload,
    }) {
        let keys: usize = records.iter().map(|(key, _)| key.len()).sum();
        assert!(
            keys <= 64 * came,
            "{keys} bytes of keys out of {came} bytes"
        );
    }
}

#[test]
fn the_numbers_of_a_writer_reach_to_the_greatest() {
    let mut known = Known::default();
    known.insert(u64::MAX..=u64::MAX);
    known.insert(1..=u64::MAX - 2);
    assert!(!known.contains(u64::MAX - 1));
    known.insert(u64::MAX - 1..=u64::MAX - 1);
    assert_eq!((known.base(), known.ahead_len()), (u64::MAX, 0));
    let of = |seq: u64| Dot { seq, ..dot(1, 1) };
    let clock: Clock = [of(u64::MAX), of(1)].into_iter().collect();
    assert_eq!(clock.difference(&Clock::default()).len(), 2);
}

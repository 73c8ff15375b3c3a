//! Each bound that the core checks: at it, and one over it.

use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::{Known, ReplicaId, Stamp};
use level_replicator_core::codec::{put_prefixed, put_varint};
use level_replicator_core::config::Config;
use level_replicator_core::frame::{Frame, FrameReader, FrameWriter};
use level_replicator_core::heal::{List, Range};
use level_replicator_core::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_PER_MESSAGE, ANNOUNCEMENT_BYTES_MAX, CLUSTER_BYTES_MAX,
    DESCRIPTORS_PER_MESSAGE, FRAME_PAYLOAD_MAX, HEADS_PER_MESSAGE, KEY_BYTES_MAX, LIST_ITEMS_MAX,
    MEMBERS_MAX, MEMBERS_PER_MESSAGE, SIBLINGS_MAX, STAMP_MAX, VALUE_BYTES_CEILING,
    WANTED_KEYS_MAX,
};
use level_replicator_core::members::{Epoch, Member};
use level_replicator_core::message::{ClusterNews, Heads, Hello, Message};
use level_replicator_core::packing::{RecordsEncoder, decode_records};
use level_replicator_core::record::Record;

use crate::samples::{descriptors, dot, head, hello, put, record};

fn decodes(message: &Message) -> bool {
    let mut writer = FrameWriter::default();
    message.encode(&mut writer);
    let mut reader = FrameReader::default();
    reader.push(&writer.take());
    let frame = reader
        .next_frame()
        .expect("a good frame")
        .expect("a whole frame");
    Message::decode(frame).is_ok()
}

fn records_decode(key: Bytes, record: &Record) -> bool {
    let mut encoder = RecordsEncoder::default();
    encoder.push(&key, record);
    decode_records(encoder.finish().into()).is_ok()
}

#[test]
fn a_frame() {
    let mut writer = FrameWriter::default();
    writer.push(5, &vec![0xa5; FRAME_PAYLOAD_MAX]);
    let mut reader = FrameReader::default();
    reader.push(&writer.take());
    assert!(matches!(reader.next_frame(), Ok(Some(_))));

    let refused = std::panic::catch_unwind(|| {
        FrameWriter::default().push(5, &vec![0xa5; FRAME_PAYLOAD_MAX + 1]);
    });
    assert!(refused.is_err());
}

#[test]
fn a_key_of_a_record() {
    let record = record(&[put(1, 1, b"v")], &[]);
    assert!(!records_decode(Bytes::new(), &record));
    assert!(records_decode(
        Bytes::from(vec![b'k'; KEY_BYTES_MAX]),
        &record
    ));
    assert!(!records_decode(
        Bytes::from(vec![b'k'; KEY_BYTES_MAX + 1]),
        &record
    ));
}

#[test]
fn a_key_that_begins_like_the_one_before() {
    let fits = |shared: usize, rest: usize| {
        let mut encoder = RecordsEncoder::default();
        let record = record(&[put(1, 1, b"v")], &[]);
        encoder.push(&Bytes::from(vec![b'k'; shared]), &record);
        encoder.push(&Bytes::from(vec![b'k'; shared + rest]), &record);
        decode_records(encoder.finish().into()).is_ok()
    };
    assert!(fits(100, KEY_BYTES_MAX - 100));
    assert!(!fits(100, KEY_BYTES_MAX - 99));
}

#[test]
fn a_value_of_a_record() {
    let of = |len: usize| record(&[put(1, 1, &vec![0; len])], &[]);
    let key = Bytes::from_static(b"key");
    assert!(records_decode(key.clone(), &of(VALUE_BYTES_CEILING)));
    assert!(!records_decode(key, &of(VALUE_BYTES_CEILING + 1)));
}

#[test]
fn siblings_of_a_record() {
    let of = |count: usize| {
        let live: Vec<_> = (1..=count as u64).map(|seq| put(1, seq, b"")).collect();
        record(&live, &[])
    };
    let key = Bytes::from_static(b"key");
    assert!(records_decode(key.clone(), &of(SIBLINGS_MAX)));
    assert!(!records_decode(key, &of(SIBLINGS_MAX + 1)));
}

#[test]
fn siblings_out_of_order_or_twice_and_dots_from_zero() {
    let key = Bytes::from_static(b"key");
    let two = |a, b| record(&[put(1, a, b""), put(1, b, b"")], &[]);
    assert!(records_decode(key.clone(), &two(1, 2)));
    assert!(!records_decode(key.clone(), &two(2, 1)));
    assert!(!records_decode(key.clone(), &two(2, 2)));
    assert!(!records_decode(key, &two(0, 2)));
}

#[test]
fn a_stamp_of_a_record() {
    let of = |stamp: i64| {
        let mut payload = vec![1];
        payload.extend_from_slice(&7u64.to_be_bytes());
        payload.extend_from_slice(&[1, 1 | 2, 0]);
        put_prefixed(&mut payload, b"key");
        payload.extend_from_slice(&[0, 1]);
        put_varint(&mut payload, level_replicator_core::codec::zigzag(stamp));
        decode_records(payload.into())
    };
    let records = of(STAMP_MAX as i64).expect("the greatest stamp");
    assert_eq!(records[0].1.live[0].stamp, Stamp::from_micros(STAMP_MAX));
    assert!(of(STAMP_MAX as i64 + 1).is_err());
    assert!(of(-1).is_err());
}

#[test]
fn heads_of_a_message() {
    let clock = |heads: usize| Message::Clock {
        heads: Heads(
            (0..heads as u64)
                .map(|writer| head(writer, &[(1, 1)], false))
                .collect(),
        ),
        asks: false,
        more: false,
    };
    assert!(decodes(&clock(HEADS_PER_MESSAGE)));
    assert!(!decodes(&clock(HEADS_PER_MESSAGE + 1)));
}

#[test]
fn ranges_of_a_head() {
    let clock = |ranges: u64| {
        let ranges: Vec<_> = (1..=ranges).map(|range| (range * 2, range * 2)).collect();
        Message::Clock {
            heads: Heads(vec![head(1, &ranges, false)]),
            asks: false,
            more: false,
        }
    };
    assert!(decodes(&clock(HEADS_PER_MESSAGE as u64)));
    assert!(!decodes(&clock(HEADS_PER_MESSAGE as u64 + 1)));
}

#[test]
fn writers_of_a_message() {
    let writers = |count: usize| Message::Writers(vec![descriptors()[0]; count]);
    assert!(decodes(&writers(DESCRIPTORS_PER_MESSAGE)));
    assert!(!decodes(&writers(DESCRIPTORS_PER_MESSAGE + 1)));
}

#[test]
fn addresses_of_a_message() {
    let address: Address = "10.0.0.1:9000".parse().expect("an address");
    let addresses = |count: usize| Message::Addresses(vec![address.clone(); count]);
    assert!(decodes(&addresses(ADDRESSES_PER_MESSAGE)));
    assert!(!decodes(&addresses(ADDRESSES_PER_MESSAGE + 1)));
}

#[test]
fn items_of_a_list_and_places_of_what_is_absent() {
    let list = |items: usize| {
        Message::List(List::Items {
            end: None,
            hashes: vec![7; items],
        })
    };
    let absent = |items: usize| Message::Absent(vec![7; items]);
    assert!(decodes(&list(4 * LIST_ITEMS_MAX)));
    assert!(!decodes(&list(4 * LIST_ITEMS_MAX + 1)));
    assert!(decodes(&absent(4 * LIST_ITEMS_MAX)));
    assert!(!decodes(&absent(4 * LIST_ITEMS_MAX + 1)));
}

#[test]
fn the_end_of_a_range() {
    let range = |len: usize| {
        Message::Range(Range {
            end: Some(vec![b'k'; len].into()),
            count: 1,
            fingerprint: 1,
        })
    };
    assert!(decodes(&range(KEY_BYTES_MAX + 1)));
    assert!(!decodes(&range(KEY_BYTES_MAX + 2)));
}

#[test]
fn keys_that_are_wanted() {
    let want = |keys: usize| Message::Want(vec![Bytes::from_static(b"key"); keys]);
    assert!(decodes(&want(WANTED_KEYS_MAX)));
    assert!(!decodes(&want(WANTED_KEYS_MAX + 1)));
}

#[test]
fn members_and_agreements_of_a_message() {
    let name = |number: usize| {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&number.to_be_bytes());
        ReplicaId(name)
    };
    let member = Member {
        retired: false,
        admitted_by: name(0),
    };
    let cluster = |members: usize, acks: usize| {
        Message::Cluster(ClusterNews {
            members: (0..members).map(|number| (name(number), member)).collect(),
            epoch: Epoch {
                acks: (0..acks).map(name).collect(),
                ..Epoch::default()
            },
            ..ClusterNews::default()
        })
    };
    assert!(decodes(&cluster(MEMBERS_PER_MESSAGE, MEMBERS_MAX)));
    assert!(!decodes(&cluster(MEMBERS_PER_MESSAGE + 1, MEMBERS_MAX)));
    assert!(!decodes(&cluster(MEMBERS_PER_MESSAGE, MEMBERS_MAX + 1)));
}

#[test]
fn an_address() {
    let of = |len: usize| format!("{}:9000", "h".repeat(len - 5));
    assert!(of(ADDRESS_BYTES_MAX).parse::<Address>().is_ok());
    assert!(of(ADDRESS_BYTES_MAX + 1).parse::<Address>().is_err());

    // The same on the wire, where the text need not be an address.
    let message = |text: &str| {
        let mut payload = vec![1];
        put_prefixed(&mut payload, text.as_bytes());
        Message::decode(Frame {
            kind: 9,
            payload: payload.into(),
        })
    };
    assert!(message(&of(ADDRESS_BYTES_MAX)).is_ok());
    assert!(message(&of(ADDRESS_BYTES_MAX + 1)).is_err());
    assert!(message("nowhere").is_err());
}

#[test]
fn the_name_of_a_cluster() {
    let named = |len: usize| {
        Message::Hello(Hello {
            cluster: "c".repeat(len),
            ..hello()
        })
    };
    assert!(decodes(&named(CLUSTER_BYTES_MAX)));
    assert!(!decodes(&named(CLUSTER_BYTES_MAX + 1)));
}

#[test]
fn an_announcement() {
    use level_replicator_core::announcement::Announcement;
    let of = |len: usize| Announcement {
        instance: 1,
        wants_answer: false,
        host: "h".repeat(len),
        port: 1,
    };
    let longest = of(ADDRESS_BYTES_MAX - 1).encode(&[0; 32]);
    assert!(longest.len() <= ANNOUNCEMENT_BYTES_MAX);
    assert!(Announcement::decode(&longest, &[0; 32]).is_ok());
    assert!(Announcement::decode(&[0; ANNOUNCEMENT_BYTES_MAX + 1], &[0; 32]).is_err());
}

#[test]
fn every_setting() {
    let ms = Duration::from_millis;
    let check = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.check().map_err(|error| error.setting)
    };
    assert_eq!(check(&|_| ()), Ok(()));

    assert_eq!(
        check(&|c| c.cluster = "c".repeat(CLUSTER_BYTES_MAX)),
        Ok(())
    );
    assert_eq!(
        check(&|c| c.cluster = "c".repeat(CLUSTER_BYTES_MAX + 1)),
        Err("cluster")
    );
    assert_eq!(check(&|c| c.cluster.clear()), Err("cluster"));

    assert_eq!(check(&|c| c.value_bytes_max = VALUE_BYTES_CEILING), Ok(()));
    assert_eq!(
        check(&|c| c.value_bytes_max = VALUE_BYTES_CEILING + 1),
        Err("value_bytes_max")
    );

    assert_eq!(check(&|c| c.min_interval = c.idle_interval), Ok(()));
    assert_eq!(
        check(&|c| c.min_interval = c.idle_interval + ms(1)),
        Err("min_interval")
    );
    assert_eq!(check(&|c| c.min_interval = ms(0)), Err("min_interval"));

    assert_eq!(check(&|c| c.backoff_min = c.backoff_max), Ok(()));
    assert_eq!(
        check(&|c| c.backoff_min = c.backoff_max + ms(1)),
        Err("backoff_min")
    );
    assert_eq!(check(&|c| c.backoff_min = ms(0)), Err("backoff_min"));

    assert_eq!(check(&|c| c.fanout = 0), Err("fanout"));
    assert_eq!(check(&|c| c.links_max = 0), Err("links_max"));
    assert_eq!(check(&|c| c.window = 0), Err("window"));
    assert_eq!(
        check(&|c| (c.fanout, c.links_max, c.window) = (1, 1, 1)),
        Ok(())
    );
}

#[test]
fn a_stamp() {
    assert_eq!(Stamp::from_micros(STAMP_MAX).as_micros(), STAMP_MAX);
    assert_eq!(Stamp::from_micros(STAMP_MAX + 1).as_micros(), STAMP_MAX);
}

#[test]
fn a_number() {
    let mut known = Known::default();
    known.insert(1..=u64::MAX);
    assert!(known.contains(u64::MAX));
    assert_eq!(dot(1, u64::MAX).seq, known.base());
}

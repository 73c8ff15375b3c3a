//! One of everything that travels or is stored, for the tests of the formats.

use bytes::Bytes;
use level_replicator_core::clock::{Dot, Known, ReplicaId, Stamp, WriterId};
use level_replicator_core::heal::{List, Plan, Purpose, Range, Start};
use level_replicator_core::members::{Epoch, Member};
use level_replicator_core::message::{Applied, ClusterNews, Head, Heads, Hello, Message};
use level_replicator_core::record::{Content, Record, Version};
use level_replicator_core::writers::{Descriptor, Writers};

pub(crate) fn dot(writer: u64, seq: u64) -> Dot {
    Dot {
        writer: WriterId(writer),
        seq,
    }
}

pub(crate) fn put(writer: u64, seq: u64, value: &[u8]) -> Version {
    Version {
        dot: dot(writer, seq),
        stamp: Stamp::from_micros(1_700_000_000_000_000 + seq),
        content: Content::Put(Bytes::copy_from_slice(value)),
    }
}

pub(crate) fn delete(writer: u64, seq: u64) -> Version {
    Version {
        content: Content::Delete,
        ..put(writer, seq, b"")
    }
}

pub(crate) fn record(live: &[Version], seen: &[Dot]) -> Record {
    Record {
        live: live.to_vec(),
        seen: seen.iter().copied().collect(),
    }
}

/// Two puts and a delete side by side, with a history.
pub(crate) fn siblings() -> Record {
    record(
        &[put(1, 7, b"one"), delete(2, 300), put(3, 1, b"")],
        &[dot(4, 5), dot(5, 70_000)],
    )
}

pub(crate) fn descriptors() -> Vec<Descriptor> {
    let replica = ReplicaId([7; 16]);
    let of = |writer: u64| Descriptor {
        writer: WriterId(writer),
        replica,
        parent: (writer > 1).then(|| dot(writer - 1, 1_000)),
    };
    (1..=5).map(of).collect()
}

pub(crate) fn writers() -> Writers {
    let mut writers = Writers::default();
    for descriptor in descriptors() {
        writers.add(descriptor).expect("parents come first");
    }
    writers
}

pub(crate) fn head(writer: u64, ranges: &[(u64, u64)], adds: bool) -> Head {
    let mut known = Known::default();
    ranges
        .iter()
        .for_each(|(first, last)| known.insert(*first..=*last));
    Head {
        writer: WriterId(writer),
        known,
        adds,
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        cluster: "default".to_owned(),
        replica: ReplicaId([0x5a; 16]),
        instance: 0x0102_0304_0506_0708,
        clock_digest: 0x1111_2222_3333_4444_5555_6666_7777_8888,
        state_digest: Some(0x9999_aaaa_bbbb_cccc_dddd_eeee_ffff_0000),
        whole: true,
        settled: true,
        heals: false,
        token: 0x0bad_cafe_0bad_cafe,
        floor_digest: 0x2222_3333_4444_5555,
        cluster_digest: 0x3333_4444_5555_6666,
        epoch_digest: 0x4444_5555_6666_7777,
        addresses_digest: 0xfeed_beef_dead_cafe,
        advertised: Some("10.0.0.1:9000".parse().expect("an address")),
    }
}

/// One message of each kind, with a name.
pub(crate) fn messages() -> Vec<(&'static str, Message)> {
    let heads = Heads(vec![
        head(1, &[(1, 9), (12, 14)], false),
        head(2, &[(300, 300)], true),
    ]);
    vec![
        ("hello", Message::Hello(hello())),
        ("writers", Message::Writers(descriptors())),
        (
            "clock",
            Message::Clock {
                heads: heads.clone(),
                asks: true,
                more: false,
            },
        ),
        (
            "records",
            Message::Records(vec![
                (
                    Bytes::from_static(b"key1"),
                    record(&[put(1, 7, b"value")], &[]),
                ),
                (
                    Bytes::from_static(b"key2"),
                    record(&[put(1, 8, b"other")], &[]),
                ),
                (Bytes::from_static(b"key22"), siblings()),
                (Bytes::from_static(b"z"), record(&[delete(2, 9)], &[])),
            ]),
        ),
        (
            "fragment",
            Message::Fragment {
                bytes: Bytes::from_static(b"a piece"),
                last: true,
            },
        ),
        (
            "claim",
            Message::Claim {
                unclaimed: vec![WriterId(1), WriterId(2)],
            },
        ),
        (
            "yield",
            Message::Yield {
                whole: Some(WriterId(1)),
                unserved: false,
            },
        ),
        (
            "applied",
            Message::Applied(Applied {
                consumed: 70_000,
                answers: true,
                ends: true,
                more: false,
                heals: true,
                heads: heads.clone(),
            }),
        ),
        (
            "addresses",
            Message::Addresses(vec![
                "10.0.0.1:9000".parse().expect("an address"),
                "[::1]:1".parse().expect("an address"),
            ]),
        ),
        ("busy", Message::Busy { retry_ms: 1_000 }),
        ("bye", Message::Bye),
        (
            "cluster",
            Message::Cluster(ClusterNews {
                members: vec![(
                    ReplicaId([0x5a; 16]),
                    Member {
                        retired: true,
                        admitted_by: ReplicaId([0x5b; 16]),
                    },
                )],
                epoch: Epoch {
                    number: 300,
                    proposer: ReplicaId([0x5b; 16]),
                    superseded: 1,
                    cut: [Dot {
                        writer: WriterId(1),
                        seq: 1,
                    }]
                    .into_iter()
                    .collect(),
                    acks: [ReplicaId([0x5a; 16])].into(),
                },
                has_cut: true,
                more: false,
            }),
        ),
        ("floor", Message::Floor { heads, more: false }),
        (
            "plan",
            Message::Plan(Plan {
                purpose: Purpose::Scrub,
                seed: 0x0102_0304_0506_0708,
                start: Bytes::from_static(b"a"),
                end: Some(Bytes::from_static(b"b")),
            }),
        ),
        (
            "start",
            Message::Start(Start::From {
                start: Bytes::from_static(b"b"),
                direct: Bytes::from_static(b"k"),
            }),
        ),
        ("reached", Message::Reached(Bytes::from_static(b"k"))),
        (
            "range",
            Message::Range(Range {
                end: None,
                count: 256,
                fingerprint: 0x1111_2222_3333_4444_5555_6666_7777_8888,
            }),
        ),
        (
            "list",
            Message::List(List::Items {
                end: Some(Bytes::from_static(b"m")),
                hashes: vec![1, 0xffff_ffff_ffff_ffff],
            }),
        ),
        ("list-same", Message::List(List::Same)),
        ("absent", Message::Absent(vec![0, 300])),
        (
            "chains",
            Message::Chains(vec![(
                WriterId(2),
                Dot {
                    writer: WriterId(1),
                    seq: 300,
                },
            )]),
        ),
        ("tell-all", Message::TellAll),
        ("want", Message::Want(vec![Bytes::from_static(b"key")])),
    ]
}

/// Failures are shown whole, so no files are left behind for them.
pub(crate) fn proptest_config() -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        failure_persistence: None,
        ..proptest::test_runner::Config::default()
    }
}

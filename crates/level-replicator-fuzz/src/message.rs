//! Payloads of frames to messages.
//!
//! What must hold: no part is over its bound, a message that was read can be said and read again, and
//! clocks that were told bring a clock to where the teller's was.

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot};
use level_replicator_core::frame::{Frame, FrameReader, FrameWriter, WIRE_VERSION};
use level_replicator_core::heal::{List, Start};
use level_replicator_core::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_PER_MESSAGE, CLUSTER_BYTES_MAX, DESCRIPTORS_PER_MESSAGE,
    HEADS_PER_MESSAGE, KEY_BYTES_MAX, LIST_ITEMS_MAX, MEMBERS_MAX, MEMBERS_PER_MESSAGE,
    UNCLAIMED_PER_MESSAGE, WANTED_KEYS_MAX,
};
use level_replicator_core::message::{ClusterNews, Heads, Message};
use level_replicator_core::record::Key;

use crate::record;
use crate::seeds;
use crate::target::{Outcome, Target, decode_error_name};

/// One message. An input is its kind and its payload.
pub const TARGET: Target = Target {
    name: "message",
    body: run,
    seeds: seeds::messages,
    remake: None,
    deep_percent_min: 10,
    outcomes_min: 20,
};

/// Runs one input.
pub fn run(input: &[u8]) -> Outcome {
    let Some((&kind, payload)) = input.split_first() else {
        return Outcome::refused("nothing");
    };
    let payload = Bytes::copy_from_slice(payload);
    let size = payload.len();
    match Message::decode(Frame { kind, payload }) {
        Err(error) => Outcome::refused(match kind {
            1..=19 => format!("{kind}: {}", decode_error_name(&error)),
            _ => "another kind".to_owned(),
        }),
        Ok(message) => {
            check(&message, size);
            Outcome::deep(name(&message))
        }
    }
}

fn name(message: &Message) -> String {
    let text = format!("{message:?}");
    let end = text.find(|letter: char| !letter.is_ascii_alphabetic());
    let count = match message {
        Message::Records(records) => records.len(),
        Message::Clock { heads, .. } => heads.0.len(),
        Message::Applied(applied) => applied.heads.0.len(),
        Message::Writers(descriptors) => descriptors.len(),
        Message::Claim { unclaimed } => unclaimed.len(),
        Message::Addresses(addresses) => addresses.len(),
        Message::Cluster(news) => news.members.len(),
        Message::Floor { heads, .. } => heads.0.len(),
        Message::List(List::Items { hashes, .. }) => hashes.len(),
        Message::Absent(places) => places.len(),
        Message::Want(keys) => keys.len(),
        Message::Chains(chains) => chains.len(),
        _ => 1,
    };
    format!("{} of {}", &text[..end.unwrap_or(text.len())], count.min(5))
}

fn check(message: &Message, size: usize) {
    match message {
        Message::Records(records) => return record::check_packed(records, size),
        Message::Hello(hello) => {
            assert!(hello.cluster.len() <= CLUSTER_BYTES_MAX, "long name");
            let understood = (hello.version_min..=hello.version_max).contains(&WIRE_VERSION);
            assert!(
                understood || hello.cluster.is_empty(),
                "read what is not understood"
            );
        }
        Message::Writers(descriptors) => {
            assert!(descriptors.len() <= DESCRIPTORS_PER_MESSAGE, "many writers");
        }
        Message::Clock { heads, .. } => check_heads(heads, size),
        Message::Applied(applied) => check_heads(&applied.heads, size),
        Message::Claim { unclaimed } => {
            assert!(unclaimed.len() <= UNCLAIMED_PER_MESSAGE, "many unclaimed");
        }
        Message::Addresses(addresses) => {
            assert!(addresses.len() <= ADDRESSES_PER_MESSAGE, "many addresses");
            for address in addresses {
                assert!(address.as_str().len() <= ADDRESS_BYTES_MAX, "long address");
            }
        }
        Message::Cluster(news) => return check_cluster(news, size),
        Message::Floor { heads, .. } => check_heads(heads, size),
        Message::Plan(plan) => check_bound(Some(&plan.start).into_iter().chain(&plan.end)),
        Message::Start(Start::From { start, direct }) => check_bound([start, direct]),
        Message::Reached(key) => check_bound([key]),
        Message::Range(range) => check_bound(&range.end),
        Message::List(List::Items { end, hashes }) => {
            assert!(hashes.len() <= 4 * LIST_ITEMS_MAX, "a long list");
            check_bound(end);
        }
        Message::Chains(chains) => {
            assert!(chains.len() <= HEADS_PER_MESSAGE, "many chains");
        }
        Message::Absent(places) => assert!(places.len() <= 4 * LIST_ITEMS_MAX, "many places"),
        Message::Want(keys) => {
            assert!(keys.len() <= WANTED_KEYS_MAX, "many keys");
            assert!(
                keys.iter().all(|key| key.len() <= KEY_BYTES_MAX),
                "a long key"
            );
        }
        Message::Start(Start::Refused)
        | Message::List(List::Same)
        | Message::Fragment { .. }
        | Message::Yield { .. }
        | Message::Busy { .. }
        | Message::TellAll
        | Message::Bye => {}
    }
    assert_eq!(&said_again(message), message, "a message said again");
}

/// Checks keys at which ranges end: one byte longer than any key.
fn check_bound<'a>(keys: impl IntoIterator<Item = &'a Key>) {
    for key in keys {
        assert!(key.len() <= KEY_BYTES_MAX + 1, "a bound too long");
    }
}

/// A cut that ranges overlap in is told in another way again, so only what it says must stay.
fn check_cluster(news: &ClusterNews, size: usize) {
    assert!(news.members.len() <= MEMBERS_PER_MESSAGE, "many members");
    assert!(news.epoch.acks.len() <= MEMBERS_MAX, "many agreements");
    let ranges: usize = news
        .epoch
        .cut
        .iter()
        .map(|(_, known)| known.ahead_len())
        .sum();
    assert!(ranges <= size / 2, "more ranges than bytes");
    let Message::Cluster(again) = said_again(&Message::Cluster(news.clone())) else {
        panic!("another message came back");
    };
    assert_eq!(&again, news, "members and an epoch said again");
}

/// The message after a way through a frame.
fn said_again(message: &Message) -> Message {
    let mut writer = FrameWriter::default();
    message.encode(&mut writer);
    let mut reader = FrameReader::default();
    reader.push(&writer.take());
    let frame = reader.next_frame().expect("a good frame");
    Message::decode(frame.expect("a whole frame")).expect("a good message")
}

fn check_heads(heads: &Heads, size: usize) {
    assert!(heads.0.len() <= HEADS_PER_MESSAGE, "many heads");
    let ranges: usize = heads.0.iter().map(|head| head.known.ahead_len()).sum();
    assert!(ranges <= size / 2, "more ranges than bytes");

    let mut clock = Clock::default();
    heads.update(&mut clock);
    let mut theirs = Clock::default();
    for piece in Heads::changed(&clock, &Clock::default()) {
        assert!(
            piece.0.len() <= HEADS_PER_MESSAGE,
            "a piece too large to say"
        );
        piece.update(&mut theirs);
    }
    assert_eq!(theirs, clock, "a clock told in full");
    assert_eq!(
        theirs.digest(),
        clock.digest(),
        "equal clocks, other digests"
    );
    assert!(theirs.covers(&clock), "a clock that does not cover itself");
    assert_eq!(
        clock.difference(&theirs),
        [],
        "a difference of equal clocks"
    );
    for (writer, range) in clock.difference(&Clock::default()) {
        let ends = [*range.start(), *range.end()];
        let knows = |seq: u64| clock.contains(Dot { writer, seq });
        assert!(
            ends.into_iter().all(knows),
            "a difference that is not known"
        );
    }
}

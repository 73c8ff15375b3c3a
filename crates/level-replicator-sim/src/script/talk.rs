//! One conversation between two replicas, frame by frame: it can be stopped, cut and disturbed at any
//! moment, and says who sent what.

use std::collections::BTreeMap;

use bytes::Bytes;
use level_replicator_core::frame::FrameReader;
use level_replicator_core::heal::{List, Purpose, Start};
use level_replicator_core::message::Message;
use level_replicator_core::replica::{Input, Replica};

use super::names::text;
use super::{Stage, number};
use crate::cluster::{Piece, Touched};

/// No conversation of a scenario takes longer, in virtual microseconds.
const TALK_MAX_US: u64 = 200_000_000;

/// A record whose frame names more keys is not told key by key.
const KEYS_TOLD_MAX: usize = 6;

/// Two replicas that talk.
pub(super) struct Talk {
    a: usize,
    b: usize,
    readers: BTreeMap<(u64, usize), FrameReader>,
    /// The first frame that is on its way was read already.
    is_read: bool,
    next: Option<Message>,
    is_quiet: bool,
    /// What is compared now should be equal.
    is_scrub: bool,
    /// Not even how much was sent is told.
    is_silent: bool,
    watched: Vec<Bytes>,
    seen: Vec<String>,
    links_before: u64,
    counts: Vec<(usize, u64, u64)>,
    rule: Option<Rule>,
    /// How much of its frame arrives before the line is cut.
    part_before_cut: Option<usize>,
    is_told: bool,
}

/// What is to be done to a conversation, and when.
#[derive(Debug, Clone)]
struct Rule {
    deed: String,
    moment: Moment,
    from: usize,
}

#[derive(Debug, Clone)]
enum Moment {
    Before(String),
    After(usize),
    AtByte(usize),
}

impl Stage {
    /// One whole conversation between two replicas and nobody else.
    pub(super) fn sync(&mut self, a: &str, b: &str, how: &[&str]) -> Result<(), String> {
        let (a, b) = (self.names.node(a)?, self.names.node(b)?);
        let mut talk = Talk {
            a,
            b,
            readers: BTreeMap::new(),
            is_read: false,
            next: None,
            is_quiet: false,
            is_scrub: false,
            is_silent: false,
            watched: Vec::new(),
            seen: Vec::new(),
            links_before: self.cluster.trace.counts().get("links made"),
            counts: vec![(a, 0, 0), (b, 0, 0)],
            rule: None,
            part_before_cut: None,
            is_told: false,
        };
        self.read_how(&mut talk, how)?;
        if self.cluster.state(a).is_none() {
            return Err(format!("{} does not run", self.name(a)));
        }
        self.said.clear();
        self.cluster.frames_apart = true;
        self.cluster.add_peer(a, b);
        self.hold(talk);
        Ok(())
    }

    /// Goes on with the conversation that was stopped.
    pub(super) fn go_on(&mut self, how: &[&str]) -> Result<(), String> {
        let mut last = self.talks.len().checked_sub(1);
        let mut how = how;
        if let [a, b, rest @ ..] = how
            && let (Ok(a), Ok(b)) = (self.names.node(a), self.names.node(b))
        {
            last = self
                .talks
                .iter()
                .position(|talk| (talk.a, talk.b) == (a, b));
            how = rest;
        }
        let mut talk = self
            .talks
            .remove(last.ok_or("no such conversation was stopped")?);
        talk.rule = None;
        self.read_how(&mut talk, how)?;
        self.hold(talk);
        Ok(())
    }

    fn read_how(&self, talk: &mut Talk, how: &[&str]) -> Result<(), String> {
        match how {
            [] => Ok(()),
            ["quietly", rest @ ..] => {
                talk.is_quiet = true;
                self.read_how(talk, rest)
            }
            ["silently"] => {
                (talk.is_quiet, talk.is_silent) = (true, true);
                Ok(())
            }
            ["watch", keys @ ..] => {
                let keys = keys
                    .iter()
                    .map(|key| Bytes::copy_from_slice(key.as_bytes()));
                talk.watched = keys.collect();
                Ok(())
            }
            [deed, rest @ .., "from", from] => {
                let moment = match rest {
                    ["before", what] => Moment::Before((*what).to_owned()),
                    ["after", count, "frames"] => Moment::After(number(count)?),
                    ["at", "byte", place] => Moment::AtByte(number(place)?),
                    _ => return Err(format!("no such moment: {}", rest.join(" "))),
                };
                talk.rule = Some(Rule {
                    deed: (*deed).to_owned(),
                    moment,
                    from: self.names.node(from)?,
                });
                Ok(())
            }
            _ => Err(format!("no such way to talk: {}", how.join(" "))),
        }
    }

    /// Lets the two talk until they part or the rule stops them.
    fn hold(&mut self, mut talk: Talk) {
        self.freeze();
        let until_us = self.cluster.now_us + TALK_MAX_US;
        while !self.is_over(&talk) && self.cluster.now_us < until_us {
            let Some(piece) = self.cluster.next_piece() else {
                self.step(until_us);
                self.watch(&mut talk);
                continue;
            };
            self.read(&mut talk, &piece);
            if talk.is_due(&piece) {
                let rule = talk.rule.take();
                let deed = rule.map(|rule| rule.deed).unwrap_or_default();
                if deed == "stop" {
                    self.tell("-- stopped here");
                    self.talks.push(talk);
                    self.freeze();
                    return;
                }
                self.disturb(&mut talk, &deed);
                if deed == "cut" {
                    break;
                }
            } else {
                self.pass(&mut talk);
            }
            self.watch(&mut talk);
        }
        self.part(&talk);
    }

    /// Nothing arrives in the conversations that are stopped.
    fn freeze(&mut self) {
        let pairs = self.talks.iter().map(|talk| (talk.a, talk.b));
        self.cluster.frozen = pairs.collect();
    }

    /// Reads the frame that arrives next.
    fn read(&mut self, talk: &mut Talk, piece: &Piece) {
        if std::mem::replace(&mut talk.is_read, true) {
            return;
        }
        let listener = self.cluster.nodes[piece.to].replica.as_ref();
        let listener = listener.map_or(0, Replica::instance);
        let new = || FrameReader::new(listener);
        let reader = talk
            .readers
            .entry((piece.link, piece.side))
            .or_insert_with(new);
        reader.push(&piece.bytes);
        let frame = reader.next_frame().ok().flatten();
        talk.next = frame.and_then(|frame| Message::decode(frame).ok());
    }

    /// Lets the next frame arrive, and tells of it.
    fn pass(&mut self, talk: &mut Talk) {
        if let Some(piece) = self.cluster.next_piece() {
            let message = talk.take_message();
            self.tell_message(talk, &piece, message.as_ref());
            self.said.push(piece);
        }
        self.step(u64::MAX);
    }

    fn tell_message(&mut self, talk: &mut Talk, piece: &Piece, message: Option<&Message>) {
        let count = talk.counts.iter_mut().find(|count| count.0 == piece.from);
        if let (Some(count), Some(Message::Records(records))) = (count, message) {
            count.1 += records.len() as u64;
            count.2 += 1;
        }
        if self.looks[piece.from].is_unchecked && matches!(message, Some(Message::Records(_))) {
            self.looks[piece.to].is_unchecked = true;
        }
        match message {
            Some(Message::Plan(plan)) => talk.is_scrub = plan.purpose == Purpose::Scrub,
            Some(Message::Clock { .. }) => talk.is_scrub = false,
            _ => {}
        }
        // That what should be equal is equal is no news.
        if talk.is_quiet || (talk.is_scrub && !self.is_disturbed) {
            return;
        }
        let Some(told) = message.and_then(|message| self.describe(message)) else {
            return;
        };
        talk.is_told = true;
        let (from, to) = (self.name(piece.from), self.name(piece.to));
        self.tell(format!("{from} -> {to}: {told}"));
    }

    fn describe(&self, message: &Message) -> Option<String> {
        Some(match message {
            Message::Records(records) if records.len() > KEYS_TOLD_MAX => {
                format!("{} records", records.len())
            }
            Message::Records(records) => {
                let told = records
                    .iter()
                    .map(|(key, record)| self.names.record(key, record));
                told.collect::<Vec<_>>().join(", ")
            }
            Message::Fragment { bytes, last } => {
                let last = if *last { ", the last" } else { "" };
                format!("a piece of a record, {} bytes{last}", bytes.len())
            }
            Message::Claim { unclaimed } if unclaimed.is_empty() => "claim".to_owned(),
            Message::Claim { unclaimed } => {
                format!("claim, but for {}", self.names.writers(unclaimed))
            }
            Message::Yield { unserved: true, .. } => "yield not whole".to_owned(),
            Message::Yield { whole: None, .. } => "yield".to_owned(),
            Message::Yield {
                whole: Some(writer),
                ..
            } => {
                format!("yield, {} is whole", self.names.writers(&[*writer]))
            }
            Message::Busy { .. } => "busy".to_owned(),
            Message::Floor { .. } => "floor".to_owned(),
            Message::Plan(plan) if plan.purpose == Purpose::Heal => "compares".to_owned(),
            Message::Plan(_) => "compares what should be equal".to_owned(),
            Message::Start(Start::Refused) => "not now".to_owned(),
            Message::Start(Start::From { start, .. }) if !start.is_empty() => {
                format!("goes on from {}", text(start))
            }
            Message::Range(range) => format!("a range of {} keys", range.count),
            Message::List(List::Same) => "the same".to_owned(),
            Message::List(List::Items { hashes, .. }) => format!("has {} keys", hashes.len()),
            Message::Absent(places) => format!("lacks {} of them", places.len()),
            Message::Want(keys) => {
                let keys: Vec<String> = keys.iter().map(text).collect();
                format!("asks for {}", keys.join(", "))
            }
            _ => return None,
        })
    }

    /// What readers of the first replica see of the keys that are watched, when that has changed.
    fn watch(&mut self, talk: &mut Talk) {
        if talk.watched.is_empty() {
            return;
        }
        let keys = talk.watched.iter();
        let views: Vec<String> = keys
            .map(|key| format!("{}={}", text(key), self.view(talk.a, key)))
            .collect();
        if views != talk.seen {
            let state = self.cluster.state(talk.a);
            let waits = state.is_some_and(|state| state.is_catching_up());
            let waits = if waits { ", catching up" } else { "" };
            let name = self.name(talk.a);
            self.tell(format!("{name} shows {}{waits}", views.join(" ")));
            talk.seen = views;
        }
    }

    /// Does to the next frame, or to the link, what a line should not.
    fn disturb(&mut self, talk: &mut Talk, deed: &str) {
        let message = talk.take_message();
        let Some(mut piece) = self.cluster.take_piece() else {
            return;
        };
        let (from, to) = (self.name(piece.from), self.name(piece.to));
        let what = message.as_ref().and_then(|message| self.describe(message));
        let what = what.map(|what| format!(" ({what})")).unwrap_or_default();
        self.tell(format!("-- {deed}: {from} -> {to}{what}"));
        talk.is_told = true;
        let arriving = match deed {
            "cut" => {
                let part = talk.part_before_cut.take();
                let link = piece.link;
                if let Some(len) = part {
                    piece.bytes.truncate(len);
                    self.hand_over(piece);
                }
                self.cluster.cut_off(link);
                return;
            }
            "drop" => vec![],
            "repeat" => vec![piece.clone(), piece],
            "swap" => {
                let second = self.cluster.take_piece();
                second.into_iter().chain([piece]).collect()
            }
            "garble" => {
                let mut bytes = piece.bytes.to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                piece.bytes = bytes.into();
                vec![piece]
            }
            "truncate" => {
                piece.bytes.truncate(piece.bytes.len() / 2);
                vec![piece]
            }
            "oversize" => {
                let mut bytes = piece.bytes.to_vec();
                bytes[2..5].fill(0xff);
                piece.bytes = bytes.into();
                vec![piece]
            }
            other => return self.broken(format!("not understood: {other}")),
        };
        self.is_disturbed = true;
        for piece in arriving {
            self.hand_over(piece);
        }
    }

    fn hand_over(&mut self, piece: Piece) {
        if let Some(node) = self.cluster.deliver(piece) {
            let by_time = false;
            self.look_after(Touched {
                node,
                by_time,
                from: None,
            });
        }
    }

    fn is_over(&self, talk: &Talk) -> bool {
        let made = self.cluster.trace.counts().get("links made") > talk.links_before;
        let runs = |node| self.cluster.state(node).is_some();
        if !runs(talk.a) || !runs(talk.b) {
            return true;
        }
        made && self.cluster.links_between(talk.a, talk.b) == 0
    }

    /// The two have nothing more to do with each other.
    fn part(&mut self, talk: &Talk) {
        // Both ends still hear of the end, but nobody has the time to call again.
        self.run_for(300);
        for (node, peer) in [(talk.a, talk.b), (talk.b, talk.a)] {
            self.cluster.remove_peer(node, peer);
        }
        self.run_for(300);
        if talk.is_silent {
            return;
        }
        if talk.is_quiet {
            for &(node, records, frames) in &talk.counts {
                if records > 0 {
                    let name = self.name(node);
                    self.tell(format!("{name} sends {records} records in {frames} frames"));
                }
            }
        } else if !talk.is_told {
            self.tell("nothing new");
        }
        for node in [talk.a, talk.b] {
            let waits = self
                .cluster
                .state(node)
                .is_some_and(|state| state.is_catching_up());
            if waits {
                let name = self.name(node);
                self.tell(format!("{name} is catching up"));
            }
        }
    }

    /// Somebody plays to one replica what another said in the last conversation.
    pub(super) fn replay(&mut self, from: &str, to: &str) -> Result<(), String> {
        let (from, to) = (self.names.node(from)?, self.names.node(to)?);
        let said: Vec<Piece> = self
            .said
            .iter()
            .filter(|piece| piece.from == from)
            .cloned()
            .collect();
        let now = self.cluster.now_at(to);
        let remote = "10.9.9.9:9000".parse().map_err(|_| "a literal address")?;
        let replica = self.cluster.nodes[to]
            .replica
            .as_mut()
            .ok_or("nobody there")?;
        let link = replica.accept(now, remote).ok_or("it takes no link")?;
        self.is_disturbed = true;
        self.cluster.poke(to);
        for piece in said {
            self.cluster.input(to, Input::Received(link, piece.bytes));
        }
        self.cluster.input(to, Input::Closed(link, None));
        // The replayed hello named an address that would now be called.
        self.cluster.remove_peer(to, from);
        Ok(())
    }
}

impl Talk {
    fn take_message(&mut self) -> Option<Message> {
        self.is_read = false;
        self.next.take()
    }

    /// Whether it is time for the rule, before this frame arrives.
    fn is_due(&mut self, piece: &Piece) -> bool {
        let Some(rule) = &mut self.rule else {
            return false;
        };
        if piece.from != rule.from {
            return false;
        }
        let kind = match &self.next {
            Some(Message::Records(_)) => "records",
            Some(Message::Fragment { .. }) => "fragment",
            Some(Message::Claim { .. }) => "claim",
            Some(Message::Yield { .. }) => "yield",
            Some(Message::Hello(_)) => "hello",
            Some(Message::Clock { .. }) => "clock",
            Some(Message::Applied(_)) => "applied",
            Some(Message::Floor { .. }) => "floor",
            Some(Message::Cluster(_)) => "cluster",
            Some(Message::Plan(_)) => "plan",
            Some(Message::Start(_)) => "start",
            Some(Message::Range(_)) => "range",
            Some(Message::List(_)) => "list",
            Some(Message::Absent(_)) => "absent",
            Some(Message::Reached(_)) => "reached",
            _ => "",
        };
        match &mut rule.moment {
            Moment::Before(what) => what == kind,
            Moment::After(0) => !matches!(kind, "" | "cluster" | "applied" | "clock" | "reached"),
            Moment::After(left) => {
                *left -= usize::from(kind == "records" || kind == "fragment");
                false
            }
            Moment::AtByte(left) if *left < piece.bytes.len() => {
                self.part_before_cut = Some(*left);
                true
            }
            Moment::AtByte(left) => {
                *left -= piece.bytes.len();
                false
            }
        }
    }
}

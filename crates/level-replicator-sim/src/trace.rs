//! What happened, for a person to read, for counting, and as one number to compare runs by.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use level_replicator_core::frame::FrameReader;
use level_replicator_core::heal::{List, Start};
use level_replicator_core::message::Message;
use xxhash_rust::xxh3::Xxh3;

/// The story of a run.
#[derive(Default)]
pub struct Trace {
    lines: Option<Vec<String>>,
    counts: Counts,
    digest: Xxh3,
    readers: BTreeMap<(u64, usize), FrameReader>,
}

/// How often each thing happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// Counts something that happened so many times.
    pub fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    /// How often it happened.
    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Adds the counts of another run.
    pub fn join(&mut self, other: &Counts) {
        for (what, times) in &other.0 {
            self.add(what, *times);
        }
    }

    /// Everything that happened, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(what, times)| (*what, *times))
    }
}

impl Trace {
    /// A story that is written down line by line; else only counts and the digest are kept.
    pub fn new(written: bool) -> Trace {
        Trace {
            lines: written.then(Vec::new),
            ..Trace::default()
        }
    }

    /// Whether lines are kept, so that it is worth making them.
    pub fn is_written(&self) -> bool {
        self.lines.is_some()
    }

    /// Writes down what happened at a time.
    pub fn tell(&mut self, now_us: u64, what: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{} {}", Seconds(now_us), what()));
        }
    }

    /// The lines so far.
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or(&[])
    }

    /// Takes the lines so far away.
    pub fn take_lines(&mut self) -> Vec<String> {
        self.lines.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Counts something that happened.
    pub fn count(&mut self, what: &'static str) {
        self.counts.add(what, 1);
    }

    /// Counts something that happened so many times.
    pub fn count_times(&mut self, what: &'static str, times: u64) {
        self.counts.add(what, times);
    }

    /// What was counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Takes bytes into the digest.
    pub fn digest_bytes(&mut self, bytes: &[u8]) {
        self.digest.update(&(bytes.len() as u64).to_le_bytes());
        self.digest.update(bytes);
    }

    /// Takes numbers into the digest.
    pub fn digest_numbers(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.digest.update(&number.to_le_bytes());
        }
    }

    /// One number for all that was taken into it: two runs are the same if it is.
    pub fn digest(&self) -> u128 {
        self.digest.digest128()
    }

    /// Reads what one end of a link sends to the process `listener`, to tell of it.
    pub fn messages(
        &mut self,
        link: u64,
        side: usize,
        listener: u64,
        bytes: &Bytes,
    ) -> Vec<String> {
        let new = || FrameReader::new(listener);
        let reader = self.readers.entry((link, side)).or_insert_with(new);
        reader.push(bytes);
        let mut told = Vec::new();
        while let Ok(Some(frame)) = reader.next_frame() {
            told.push(match Message::decode(frame) {
                Ok(message) => describe(&message),
                Err(error) => format!("({error})"),
            });
        }
        told
    }
}

fn describe(message: &Message) -> String {
    match message {
        Message::Hello(_) => "hello".to_owned(),
        Message::Writers(writers) => format!("writers({})", writers.len()),
        Message::Clock { heads, asks, .. } => {
            let asks = if *asks { "asks, " } else { "" };
            format!("clock({asks}{} heads)", heads.0.len())
        }
        Message::Records(records) => {
            let keys = records.iter().map(|(key, record)| {
                let dots = record.live.iter().map(|version| version.dot.to_string());
                let dots: Vec<String> = dots.collect();
                format!("{}={}", key.escape_ascii(), dots.join("|"))
            });
            format!("records({})", keys.collect::<Vec<_>>().join(" "))
        }
        Message::Fragment { bytes, last } => {
            let last = if *last { ", the last" } else { "" };
            format!("fragment({} bytes{last})", bytes.len())
        }
        Message::Claim { unclaimed } if unclaimed.is_empty() => "claim".to_owned(),
        Message::Claim { unclaimed } => format!("claim(waiting for {})", unclaimed.len()),
        Message::Yield { unserved: true, .. } => "yield(not whole)".to_owned(),
        Message::Yield { whole: None, .. } => "yield".to_owned(),
        Message::Yield { whole: Some(_), .. } => "yield(author whole)".to_owned(),
        Message::Applied(applied) => {
            let answers = if applied.answers { "answers " } else { "" };
            let ends = if applied.ends { "ends " } else { "" };
            let heals = if applied.heals { "heals " } else { "" };
            format!(
                "applied({answers}{ends}{heals}{} heads)",
                applied.heads.0.len()
            )
        }
        Message::Addresses(addresses) => format!("addresses({})", addresses.len()),
        Message::Busy { .. } => "busy".to_owned(),
        Message::Bye => "bye".to_owned(),
        Message::Cluster(news) => format!(
            "cluster({} members, epoch {}, {} acks{})",
            news.members.len(),
            news.epoch.number,
            news.epoch.acks.len(),
            if news.has_cut { ", cut" } else { "" }
        ),
        Message::Floor { heads, .. } => format!("floor({} heads)", heads.0.len()),
        Message::Plan(plan) => format!("plan({:?})", plan.purpose),
        Message::Start(Start::From { start, direct }) if start.is_empty() => {
            format!("start({})", direct.escape_ascii())
        }
        Message::Start(Start::From { start, direct }) => format!(
            "start({}, resumed at {})",
            direct.escape_ascii(),
            start.escape_ascii()
        ),
        Message::Reached(key) => format!("reached({})", key.escape_ascii()),
        Message::Start(Start::Refused) => "start(refused)".to_owned(),
        Message::Range(range) => format!("range({} items)", range.count),
        Message::List(List::Same) => "list(same)".to_owned(),
        Message::List(List::Items { hashes, .. }) => format!("list({} items)", hashes.len()),
        Message::Absent(places) => format!("absent({places:?})"),
        Message::Chains(chains) => format!("chains({})", chains.len()),
        Message::TellAll => "tell all".to_owned(),
        Message::Want(keys) => format!("want({keys:?})"),
    }
}

/// Virtual time, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

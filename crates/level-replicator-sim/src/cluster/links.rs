//! The links of a cluster: what TCP gives a program, and what it should never give.

use std::collections::VecDeque;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::replica::{Input, Replica};
use level_replicator_core::session::{LinkId, PeerError};
use level_replicator_core::state::State;

use super::{Cluster, Happening, Parcel, address};
use crate::chance::{chance, percent};

/// What links do to what crosses them.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Least time that a piece takes, in microseconds.
    pub delay_min_us: u64,
    /// Longest time that a piece takes, in microseconds, if the link is not slow or cut.
    pub delay_max_us: u64,
    /// How many of a hundred sends arrive in several pieces.
    pub split_percent: u32,
    /// How many of a thousand pieces are damaged, lost, repeated or swapped with the next one.
    pub garble_permille: u32,
}

impl Weather {
    /// Links that deliver at once and do no harm.
    pub const FAIR: Weather = Weather {
        delay_min_us: 50,
        delay_max_us: 50,
        split_percent: 0,
        garble_permille: 0,
    };
}

/// A link between two processes.
pub(super) struct Link {
    pub(super) ends: [End; 2],
    /// Both directions swallow everything from now on, and nobody is told.
    pub(super) is_silent: bool,
}

/// One side of a link.
pub(super) struct End {
    pub(super) node: usize,
    pub(super) life: u64,
    pub(super) id: LinkId,
    pub(super) is_open: bool,
    /// When the last piece on its way here arrives.
    pub(super) last_arrival_us: u64,
    /// Pieces that wait for a cut to heal.
    pub(super) held: VecDeque<Parcel>,
    /// A piece that is to be swapped with the next one.
    pub(super) swapped: Option<Bytes>,
    pub(super) pieces: u64,
}

/// Bytes on their way to one side of a link.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The link.
    pub link: u64,
    /// The side that they are for: 0 is the one that dialed.
    pub side: usize,
    /// Who sent them.
    pub from: usize,
    /// Whom they are for.
    pub to: usize,
    /// What was sent.
    pub bytes: Bytes,
}

impl Cluster {
    /// Cuts the way from one node to another; not the way back.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to));
    }

    /// Opens every way again. What waited arrives, if its link still stands.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.slow.clear();
        let links: Vec<u64> = self.links.keys().copied().collect();
        for link in links {
            for to in [0, 1] {
                let end = self.links.get_mut(&link).map(|link| &mut link.ends[to]);
                let held = end.map(|end| std::mem::take(&mut end.held));
                for parcel in held.into_iter().flatten() {
                    self.post(link, to, parcel);
                }
            }
        }
    }

    /// Whether one node cannot reach another.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains(&(from, to))
    }

    /// Makes the line between two nodes slow: so many bytes in a millisecond.
    pub fn slow_down(&mut self, a: usize, b: usize, bytes_per_ms: u64) {
        self.slow.insert((a, b), bytes_per_ms);
        self.slow.insert((b, a), bytes_per_ms);
    }

    /// Breaks one of the links that stand, chosen by a number; both ends hear of it, or neither.
    pub fn break_link(&mut self, choice: u64, silently: bool) -> bool {
        let open = |link: &Link| link.ends.iter().all(|end| end.is_open) && !link.is_silent;
        let standing: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| open(link))
            .map(|(name, _)| *name)
            .collect();
        let Some(&name) = standing.get(choice as usize % standing.len().max(1)) else {
            return false;
        };
        self.break_this_link(name, silently);
        true
    }

    fn break_this_link(&mut self, name: u64, silently: bool) {
        let Some(link) = self.links.get_mut(&name) else {
            return;
        };
        link.is_silent = true;
        let (a, b) = (link.ends[0].node, link.ends[1].node);
        self.trace.tell(self.now_us, || {
            let how = if silently { "falls silent" } else { "breaks" };
            format!("link {a}-{b} {how}")
        });
        if !silently {
            for side in [0, 1] {
                let parcel = Parcel::Closed { broken: true };
                self.schedule(
                    1,
                    Happening::Arrives {
                        link: name,
                        side,
                        parcel,
                    },
                );
            }
        }
    }

    /// Breaks every link; both ends hear of it.
    pub fn break_all_links(&mut self) {
        let names: Vec<u64> = self.links.keys().copied().collect();
        for name in names {
            self.break_this_link(name, false);
        }
    }

    /// How many links stand between two nodes.
    pub fn links_between(&self, a: usize, b: usize) -> usize {
        let between = |link: &&Link| {
            let ends = (link.ends[0].node, link.ends[1].node);
            (ends == (a, b) || ends == (b, a)) && link.ends.iter().all(|end| end.is_open)
        };
        self.links.values().filter(between).count()
    }

    /// Somebody plays the bytes to a node that a replica sent on an earlier link.
    pub fn replay(&mut self, node: usize) -> bool {
        let now = self.now_at(node);
        let remote = "10.9.9.9:9000".parse().expect("a literal address");
        let bytes = self.recorded.clone();
        let Some(replica) = &mut self.nodes[node].replica else {
            return false;
        };
        // Who hears itself much later takes that for a copy of its memory. No transport of production
        // lets anybody play a link again.
        if bytes.is_empty() || self.recorded_of == node {
            return false;
        }
        let Some(id) = replica.accept(now, remote) else {
            return false;
        };
        self.take_outputs(node);
        for piece in bytes {
            self.input(node, Input::Received(id, piece));
        }
        self.input(node, Input::Closed(id, None));
        true
    }

    /// Records what is sent on the next link that is made, for [`Cluster::replay`].
    pub fn record_next_link(&mut self, side: usize) {
        self.recording = Some((self.next_link, side));
        self.recorded.clear();
    }

    /// The bytes that arrive next, if nothing else happens before.
    pub fn next_piece(&self) -> Option<Piece> {
        let happening = self.queue.get(&self.first()?)?;
        let Happening::Arrives {
            link: name,
            side,
            parcel: Parcel::Bytes(bytes),
        } = happening
        else {
            return None;
        };
        let link = self.links.get(name)?;
        Some(Piece {
            link: *name,
            side: *side,
            from: link.ends[1 - side].node,
            to: link.ends[*side].node,
            bytes: bytes.clone(),
        })
    }

    /// Takes the bytes that arrive next off the line.
    pub fn take_piece(&mut self) -> Option<Piece> {
        let piece = self.next_piece()?;
        self.queue.remove(&self.first()?);
        Some(piece)
    }

    /// Hands bytes to one side of a link, whoever sent them; answers the replica that took them.
    pub fn deliver(&mut self, piece: Piece) -> Option<usize> {
        self.arrive(piece.link, piece.side, Parcel::Bytes(piece.bytes))
    }

    /// Breaks a link so that nothing that is still on its way arrives; both ends hear of it.
    pub fn cut_off(&mut self, name: u64) {
        self.queue.retain(
            |_, happening| !matches!(happening, Happening::Arrives { link, .. } if *link == name),
        );
        self.break_this_link(name, false);
    }

    /// Whether bytes are on their way to somebody who can take them.
    pub fn has_mail(&self) -> bool {
        self.queue.values().any(|happening| {
            matches!(
                happening,
                Happening::Arrives { .. } | Happening::Dials { .. }
            )
        })
    }

    pub(super) fn dial_arrives(&mut self, from: usize, life: u64, id: LinkId, to: usize) {
        if self.nodes[from].life != life || !self.nodes[from].dialing.contains(&id) {
            return;
        }
        let now = self.now_at(to);
        let listener = self.nodes[to].replica.as_mut();
        let Some(accepted) = listener.and_then(|replica| replica.accept(now, address(from))) else {
            let delay = self.delay(to, from);
            self.schedule(
                delay,
                Happening::DialFails {
                    node: from,
                    life,
                    id,
                },
            );
            return;
        };
        let link = self.next_link;
        self.next_link += 1;
        let end = |node: usize, life: u64, id: LinkId| End {
            node,
            life,
            id,
            is_open: true,
            last_arrival_us: 0,
            held: VecDeque::new(),
            swapped: None,
            pieces: 0,
        };
        let there = end(to, self.nodes[to].life, accepted);
        self.links.insert(
            link,
            Link {
                ends: [end(from, life, id), there],
                is_silent: false,
            },
        );
        self.nodes[to].links.insert(accepted, (link, 1));
        self.nodes[from].links.insert(id, (link, 0));
        self.trace.count("links made");
        if self.state(from).is_some_and(State::is_catching_up) {
            self.trace.count("conversations resumed after a cut");
        }
        self.post(link, 0, Parcel::Connected);
        self.take_outputs(to);
    }

    pub(super) fn arrive(&mut self, name: u64, side: usize, parcel: Parcel) -> Option<usize> {
        let link = self.links.get_mut(&name)?;
        let end = &mut link.ends[side];
        let (node, life, id) = (end.node, end.life, end.id);
        let runs = self.nodes[node].replica.is_some() && self.nodes[node].life == life;
        if !end.is_open || !runs {
            // The system of a machine that runs refuses what comes for a link that is gone.
            let answers = !matches!(parcel, Parcel::Closed { .. })
                && self.nodes[node].replica.is_some()
                && !link.is_silent;
            if answers {
                self.post(name, 1 - side, Parcel::Closed { broken: true });
            }
            return None;
        }
        let input = match parcel {
            Parcel::Connected => {
                if !self.nodes[node].dialing.remove(&id) {
                    return None;
                }
                Input::Connected(id)
            }
            Parcel::Bytes(bytes) => Input::Received(id, bytes),
            Parcel::Closed { broken } => {
                end.is_open = false;
                let is_gone = link.ends.iter().all(|end| !end.is_open);
                if is_gone {
                    self.links.remove(&name);
                }
                self.nodes[node].links.remove(&id);
                self.nodes[node].dialing.remove(&id);
                let error = broken.then(|| PeerError::Broken {
                    reason: "connection reset".to_owned(),
                });
                Input::Closed(id, error)
            }
        };
        self.input(node, input);
        Some(node)
    }

    pub(super) fn send_bytes(&mut self, node: usize, id: LinkId, bytes: Bytes) {
        self.trace.digest_bytes(&bytes);
        self.trace.count_times("bytes sent", bytes.len() as u64);
        let Some(&(link, side)) = self.nodes[node].links.get(&id) else {
            return;
        };
        if self.recording == Some((link, side)) {
            self.recorded.push(bytes.clone());
            self.recorded_of = node;
        }
        if self.trace.is_written() {
            let other = self.links.get(&link).map(|link| link.ends[1 - side].node);
            let to = other.unwrap_or(node);
            let listener = self.nodes[to].replica.as_ref().map_or(0, Replica::instance);
            let messages = self.trace.messages(link, side, listener, &bytes).join(", ");
            self.trace
                .tell(self.now_us, || format!("{node} -> {to} {messages}"));
        }
        let pieces = if self.frames_apart {
            frames(bytes)
        } else {
            vec![bytes]
        };
        for piece in pieces {
            self.send(link, side, Parcel::Bytes(piece));
        }
    }

    pub(super) fn close_link(&mut self, node: usize, id: LinkId) {
        self.nodes[node].dialing.remove(&id);
        let Some((link, side)) = self.nodes[node].links.remove(&id) else {
            return;
        };
        self.send(link, side, Parcel::Closed { broken: false });
        if let Some(standing) = self.links.get_mut(&link) {
            standing.ends[side].is_open = false;
            if standing.ends.iter().all(|end| !end.is_open) {
                self.links.remove(&link);
            }
        }
    }

    pub(super) fn dial(&mut self, node: usize, id: LinkId, to: &Address) {
        let life = self.nodes[node].life;
        self.nodes[node].dialing.insert(id);
        let there = self.addresses.get(to).copied();
        let mut luck = chance(self.seed, &[2, node as u64, self.happenings]);
        let open = there.filter(|&there| {
            self.nodes[there].replica.is_some()
                && !self.is_cut(node, there)
                && !self.is_cut(there, node)
        });
        match open {
            Some(to) => {
                let delay = self.delay(node, to);
                let from = node;
                self.schedule(delay, Happening::Dials { from, life, id, to });
            }
            None => {
                // Refused at once by the machine, or not answered at all by the network.
                let after = if there.is_some_and(|there| self.is_cut(node, there)) {
                    luck.u64(100_000..3_000_000)
                } else {
                    self.weather.delay_max_us
                };
                self.schedule(after, Happening::DialFails { node, life, id });
            }
        }
    }

    pub(super) fn delay(&mut self, from: usize, to: usize) -> u64 {
        let Weather {
            delay_min_us: min,
            delay_max_us: max,
            ..
        } = self.weather;
        let purpose = [3, from as u64, to as u64, self.happenings];
        chance(self.seed, &purpose).u64(min..=max)
    }

    /// Sends from one side of a link to the other, with what the weather does to it.
    pub(super) fn send(&mut self, name: u64, from: usize, parcel: Parcel) {
        let Some(link) = self.links.get_mut(&name) else {
            return;
        };
        let to = 1 - from;
        if link.is_silent {
            return;
        }
        let (source, target) = (link.ends[from].node, link.ends[to].node);
        let end = &mut link.ends[to];
        end.pieces += 1;
        let bytes = match parcel {
            Parcel::Bytes(bytes) => bytes,
            other => {
                if let Some(swapped) = end.swapped.take() {
                    self.post(name, to, Parcel::Bytes(swapped));
                }
                return self.post(name, to, other);
            }
        };
        let purpose = [4, name, to as u64, end.pieces];
        let mut luck = chance(self.seed, &purpose);
        let swapped = end.swapped.take();
        let mut pieces = split(bytes, self.weather.split_percent, &mut luck);
        if luck.u32(..1_000) < self.weather.garble_permille {
            let what = self.garble(name, to, &mut pieces, &mut luck);
            self.trace.count(what);
            self.trace
                .tell(self.now_us, || format!("{source} -> {target}: {what}"));
        }
        pieces.extend(swapped);
        for piece in pieces {
            self.post(name, to, Parcel::Bytes(piece));
        }
    }

    /// Does to the pieces of one send what no link should.
    fn garble(
        &mut self,
        name: u64,
        to: usize,
        pieces: &mut Vec<Bytes>,
        luck: &mut fastrand::Rng,
    ) -> &'static str {
        let place = luck.usize(..pieces.len());
        match luck.u32(..5) {
            0 => {
                let mut bytes = pieces[place].to_vec();
                let bit = luck.usize(..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                pieces[place] = bytes.into();
                "pieces with a flipped bit"
            }
            1 => {
                let len = luck.usize(..pieces[place].len());
                pieces[place].truncate(len);
                "pieces truncated"
            }
            2 => {
                pieces.remove(place);
                "pieces lost"
            }
            3 => {
                let twice = pieces[place].clone();
                pieces.insert(place, twice);
                "pieces repeated"
            }
            _ => {
                if let Some(link) = self.links.get_mut(&name) {
                    link.ends[to].swapped = pieces.pop();
                }
                "pieces swapped"
            }
        }
    }

    /// Puts a parcel on its way to one side of a link.
    pub(super) fn post(&mut self, name: u64, to: usize, parcel: Parcel) {
        let Some(link) = self.links.get(&name) else {
            return;
        };
        let (source, target) = (link.ends[1 - to].node, link.ends[to].node);
        if self.is_cut(source, target) {
            if let Some(link) = self.links.get_mut(&name) {
                link.ends[to].held.push_back(parcel);
            }
            return;
        }
        let mut delay = self.delay(source, target);
        if let Some(&bytes_per_ms) = self.slow.get(&(source, target))
            && let Parcel::Bytes(bytes) = &parcel
        {
            delay += bytes.len() as u64 * 1_000 / bytes_per_ms.max(1);
        }
        let now_us = self.now_us;
        let Some(link) = self.links.get_mut(&name) else {
            return;
        };
        let end = &mut link.ends[to];
        let at = (now_us + delay).max(end.last_arrival_us);
        end.last_arrival_us = at;
        self.schedule(
            at - now_us,
            Happening::Arrives {
                link: name,
                side: to,
                parcel,
            },
        );
    }
}

/// Cuts whole frames apart, by the lengths in their headers.
fn frames(mut bytes: Bytes) -> Vec<Bytes> {
    const HEADER_BYTES: usize = 9;
    let mut frames = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let payload = u32::from_be_bytes([0, bytes[2], bytes[3], bytes[4]]) as usize;
        let whole = bytes.len().min(HEADER_BYTES + payload);
        frames.push(bytes.split_to(whole));
    }
    frames
}

fn split(bytes: Bytes, split_percent: u32, luck: &mut fastrand::Rng) -> Vec<Bytes> {
    if bytes.len() < 2 || !percent(luck, split_percent) {
        return vec![bytes];
    }
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for _ in 0..luck.usize(1..4) {
        if rest.len() > 1 {
            let at = luck.usize(1..rest.len());
            pieces.push(rest.split_to(at));
        }
    }
    pieces.push(rest);
    pieces
}

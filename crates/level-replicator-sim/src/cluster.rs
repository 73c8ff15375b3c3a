//! A whole cluster in one thread: replicas as production uses them, on simulated disks, clocks and
//! links, in virtual time.
//!
//! The rule: all that happens comes from one queue, in the order of time, and all chance from the
//! seed. A link is what TCP gives a program: bytes in order, in pieces of any size, late, or not at
//! all; and sometimes what it should never give: damaged, lost, repeated or swapped pieces.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::Now;
use level_replicator_core::config::Config;
use level_replicator_core::event::{Discovery, Event};
use level_replicator_core::record::{Op, Tally};
use level_replicator_core::replica::{Input, Output, Replica};
use level_replicator_core::session::{LinkId, PeerError};
use level_replicator_core::state::{State, StateError, Written, scan_tally};

use crate::chance::{chance, percent};
use crate::disk::Disk;
use crate::trace::Trace;

/// Where virtual wall clocks begin: a day in November 2023.
pub const WALL_START_US: u64 = 1_700_000_000_000_000;

/// So many calls of one replica at one moment are no progress but a loop.
const CALLS_AT_ONCE_MAX: u32 = 5_000;

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

/// One replica with its disk and its clock.
pub struct Node {
    /// The process, while it runs.
    pub replica: Option<Replica>,
    /// The disk.
    pub disk: Disk,
    /// Which process runs, counted over the whole cluster.
    pub life: u64,
    /// How far the wall clock is off, in microseconds.
    pub wall_off_us: i64,
    /// The wall clock moves in steps of so many microseconds.
    pub tick_us: u64,
    /// The addresses that the program names when it opens the replica.
    pub peers: BTreeSet<usize>,
    /// Whether the disk is lost for ever.
    pub is_dead: bool,
    /// Events since they were last taken.
    pub events: Vec<Event>,
    links: BTreeMap<LinkId, (u64, usize)>,
    dialing: BTreeSet<LinkId>,
    wake_us: Option<u64>,
    calls: (u64, u32),
    opens: u64,
}

/// Something that reaches one end of a link.
#[derive(Debug, Clone)]
enum Parcel {
    Connected,
    Bytes(Bytes),
    /// The other side has closed the link, or it broke.
    Closed {
        broken: bool,
    },
}

#[derive(Debug)]
enum Happening {
    Arrives {
        link: u64,
        side: usize,
        parcel: Parcel,
    },
    Dials {
        from: usize,
        life: u64,
        id: LinkId,
        to: usize,
    },
    DialFails {
        node: usize,
        life: u64,
        id: LinkId,
    },
    Wakes {
        node: usize,
        life: u64,
    },
    Scanned {
        node: usize,
        life: u64,
        tally: Tally,
        since: Tally,
    },
}

struct Link {
    ends: [End; 2],
    /// Both directions swallow everything from now on, and nobody is told.
    is_silent: bool,
}

struct End {
    node: usize,
    life: u64,
    id: LinkId,
    is_open: bool,
    /// When the last piece on its way here arrives.
    last_arrival_us: u64,
    /// Pieces that wait for a cut to heal.
    held: VecDeque<Parcel>,
    /// A piece that is to be swapped with the next one.
    swapped: Option<Bytes>,
    pieces: u64,
}

/// What one step of a cluster did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touched {
    /// The replica that was told something.
    pub node: usize,
    /// Whether it was only told that time has passed.
    pub by_time: bool,
    /// Whose bytes it was told, if it was bytes.
    pub from: Option<usize>,
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

/// Replicas, and all that is between them.
pub struct Cluster {
    /// The seed of all chance.
    pub seed: u64,
    /// Virtual time in microseconds since the beginning.
    pub now_us: u64,
    /// The replicas; one that does not run keeps its place.
    pub nodes: Vec<Node>,
    /// What links do.
    pub weather: Weather,
    /// What happened.
    pub trace: Trace,
    /// Replicas that are called for ever without time passing.
    pub loops: Option<usize>,
    /// The settings of replicas that are opened.
    pub config: Config,
    /// Whether each frame travels as a piece of its own, for those who take pieces by hand.
    pub frames_apart: bool,
    addresses: BTreeMap<Address, usize>,
    queue: BTreeMap<(u64, u64), Happening>,
    happenings: u64,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    next_life: u64,
    /// Pairs of which the first cannot reach the second.
    cuts: BTreeSet<(usize, usize)>,
    /// Bytes in a millisecond, for pairs whose line is slow.
    slow: BTreeMap<(usize, usize), u64>,
    /// What one end of an earlier link sent, to be replayed.
    recorded: Vec<Bytes>,
    recording: Option<(u64, usize)>,
}

/// The address of a node.
pub fn address(node: usize) -> Address {
    let text = format!("10.0.{}.{}:9000", node / 250, node % 250 + 1);
    text.parse().expect("a literal address")
}

impl Cluster {
    /// No replicas, in fair weather.
    pub fn new(seed: u64, config: Config, trace: Trace) -> Cluster {
        Cluster {
            seed,
            now_us: 1_000_000,
            nodes: Vec::new(),
            weather: Weather::FAIR,
            trace,
            loops: None,
            config,
            frames_apart: false,
            addresses: BTreeMap::new(),
            queue: BTreeMap::new(),
            happenings: 0,
            links: BTreeMap::new(),
            next_link: 0,
            next_life: 0,
            cuts: BTreeSet::new(),
            slow: BTreeMap::new(),
            recorded: Vec::new(),
            recording: None,
        }
    }

    /// Adds a replica that does not run yet; answers its number.
    pub fn add_node(&mut self, disk: Disk) -> usize {
        self.addresses
            .insert(address(self.nodes.len()), self.nodes.len());
        self.nodes.push(Node {
            replica: None,
            disk,
            life: 0,
            wall_off_us: 0,
            tick_us: 1,
            peers: BTreeSet::new(),
            is_dead: false,
            events: Vec::new(),
            links: BTreeMap::new(),
            dialing: BTreeSet::new(),
            wake_us: None,
            calls: (0, 0),
            opens: 0,
        });
        self.nodes.len() - 1
    }

    /// The replicas that run.
    pub fn running(&self) -> Vec<usize> {
        let runs = |node: &usize| self.nodes[*node].replica.is_some();
        (0..self.nodes.len()).filter(runs).collect()
    }

    /// What a running replica holds.
    pub fn state(&self, node: usize) -> Option<&State> {
        self.nodes[node].replica.as_ref().map(Replica::state)
    }

    /// What time it is on one replica.
    pub fn now_at(&self, node: usize) -> Now {
        let node = &self.nodes[node];
        let wall = (WALL_START_US + self.now_us).saturating_add_signed(node.wall_off_us);
        Now {
            wall_us: wall - wall % node.tick_us,
            steady_us: self.now_us,
        }
    }

    /// Starts the process of a replica on its disk.
    ///
    /// # Errors
    ///
    /// The disk may fail; then nothing runs.
    pub fn open(&mut self, node: usize) -> Result<(), StateError> {
        let opens = self.nodes[node].opens;
        let seed = chance(self.seed, &[1, node as u64, opens]).u64(..);
        self.nodes[node].opens += 1;
        self.open_with(node, seed)
    }

    /// Starts the process of a replica with a source of chance of its own.
    ///
    /// # Errors
    ///
    /// The disk may fail; then nothing runs.
    pub fn open_with(&mut self, node: usize, seed: u64) -> Result<(), StateError> {
        let mut config = self.config.clone();
        config.advertised = Some(address(node));
        let now = self.now_at(node);
        let storage = Arc::new(self.nodes[node].disk.clone());
        let mut replica = Replica::open(storage, config, seed, now)?;
        replica.state_mut().observed = true;
        self.next_life += 1;
        let (life, now_us) = (self.next_life, self.now_us);
        self.trace.tell(now_us, || {
            format!("{node} opens: {}", replica.state().replica())
        });
        let running = &mut self.nodes[node];
        running.life = life;
        running.replica = Some(replica);
        running.links.clear();
        running.dialing.clear();
        running.wake_us = None;
        running.events.clear();
        for peer in running.peers.clone() {
            self.add_peer(node, peer);
        }
        self.take_outputs(node);
        Ok(())
    }

    /// Sums up what a replica holds, as is done in the background after an unclean end.
    pub fn scan(&mut self, node: usize, after_us: u64) {
        let Some(state) = self.state(node).filter(|state| state.tally().is_none()) else {
            return;
        };
        let scanned = scan_tally(&*state.storage().snapshot(), state.writers(), || true);
        if let Ok(Some(tally)) = scanned {
            let since = state.tally_change();
            let life = self.nodes[node].life;
            let scanned = Happening::Scanned {
                node,
                life,
                tally,
                since,
            };
            self.schedule(after_us, scanned);
        }
    }

    /// Ends a process without a word. Most often its system tells the peers; not when `silently`.
    pub fn kill(&mut self, node: usize, silently: bool) {
        let running = &mut self.nodes[node];
        if running.replica.take().is_none() {
            return;
        }
        running.dialing.clear();
        running.wake_us = None;
        for (link, side) in std::mem::take(&mut running.links).into_values() {
            if let Some(link) = self.links.get_mut(&link) {
                link.ends[side].is_open = false;
            }
            if !silently {
                self.send(link, side, Parcel::Closed { broken: true });
            }
        }
        self.trace.tell(self.now_us, || format!("{node} dies"));
    }

    /// Ends a process as a program does that closes its database.
    ///
    /// # Errors
    ///
    /// The disk may fail; the process ends all the same.
    pub fn close(&mut self, node: usize) -> Result<(), StateError> {
        let now = self.now_at(node);
        let Some(replica) = &mut self.nodes[node].replica else {
            return Ok(());
        };
        replica.pause(now);
        let closed = replica.state_mut().close();
        self.trace.tell(self.now_us, || format!("{node} closes"));
        self.take_outputs(node);
        self.kill(node, false);
        closed?;
        use level_replicator_core::storage::Storage;
        Ok(self.nodes[node].disk.sync()?)
    }

    /// Names a peer to a replica.
    pub fn add_peer(&mut self, node: usize, peer: usize) {
        let now = self.now_at(node);
        self.nodes[node].peers.insert(peer);
        if let Some(replica) = &mut self.nodes[node].replica {
            replica.add_peer(now, address(peer));
            self.take_outputs(node);
        }
    }

    /// Takes a peer's name away from a replica.
    pub fn remove_peer(&mut self, node: usize, peer: usize) {
        let now = self.now_at(node);
        self.nodes[node].peers.remove(&peer);
        if let Some(replica) = &mut self.nodes[node].replica {
            replica.remove_peer(now, &address(peer));
            self.take_outputs(node);
        }
    }

    /// Writes on a replica; `None` if it does not run.
    pub fn write(&mut self, node: usize, ops: &[Op]) -> Option<Result<Written, StateError>> {
        let now = self.now_at(node);
        let replica = self.nodes[node].replica.as_mut()?;
        let written = replica.write(now, ops);
        self.take_outputs(node);
        Some(written)
    }

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

    /// A node hears of an address, as from an announcement.
    pub fn discover(&mut self, node: usize, peer: usize) {
        self.input(node, Input::Discovered(address(peer), Discovery::Multicast));
    }

    /// Somebody plays the bytes to a node that a replica sent on an earlier link.
    pub fn replay(&mut self, node: usize) -> bool {
        let now = self.now_at(node);
        let remote = "10.9.9.9:9000".parse().expect("a literal address");
        let bytes = self.recorded.clone();
        let Some(replica) = &mut self.nodes[node].replica else {
            return false;
        };
        if bytes.is_empty() {
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

    /// When the next thing happens, in microseconds; `None` if nothing ever will.
    pub fn next_us(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// The bytes that arrive next, if nothing else happens before.
    pub fn next_piece(&self) -> Option<Piece> {
        let (_, happening) = self.queue.first_key_value()?;
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
        self.queue.pop_first();
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

    /// Lets the next thing happen that happens before a time; `None` if there is no such thing, and
    /// then it is that time.
    pub fn step(&mut self, until_us: u64) -> Option<Option<Touched>> {
        let next = self.queue.first_key_value();
        if next.is_none_or(|((at, _), _)| *at >= until_us) {
            self.now_us = self.now_us.max(until_us);
            return None;
        }
        let ((at, _), happening) = self.queue.pop_first()?;
        self.now_us = self.now_us.max(at);
        Some(self.happen(happening))
    }

    /// Lets time pass.
    pub fn run_for(&mut self, us: u64) {
        let until_us = self.now_us + us;
        while self.step(until_us).is_some() {}
    }

    fn schedule(&mut self, after_us: u64, happening: Happening) {
        self.happenings += 1;
        let at = self.now_us.saturating_add(after_us);
        self.queue.insert((at, self.happenings), happening);
    }

    fn happen(&mut self, happening: Happening) -> Option<Touched> {
        match happening {
            Happening::Arrives { link, side, parcel } => {
                let from = self.links.get(&link).map(|link| link.ends[1 - side].node);
                let node = self.arrive(link, side, parcel)?;
                Some(Touched {
                    node,
                    by_time: false,
                    from,
                })
            }
            Happening::Dials { from, life, id, to } => {
                self.dial_arrives(from, life, id, to);
                Some(Touched {
                    node: to,
                    by_time: false,
                    from: None,
                })
            }
            Happening::DialFails { node, life, id } => {
                if self.nodes[node].life != life || !self.nodes[node].dialing.remove(&id) {
                    return None;
                }
                let reason = "nobody there".to_owned();
                self.input(
                    node,
                    Input::ConnectFailed(id, PeerError::Unreachable { reason }),
                );
                Some(Touched {
                    node,
                    by_time: false,
                    from: None,
                })
            }
            Happening::Wakes { node, life } => {
                let running = &mut self.nodes[node];
                if running.life != life || running.wake_us.is_none_or(|at| at > self.now_us) {
                    return None;
                }
                running.wake_us = None;
                if running.calls.0 == self.now_us {
                    running.calls.1 += 1;
                    if running.calls.1 > CALLS_AT_ONCE_MAX {
                        self.loops = Some(node);
                        return None;
                    }
                } else {
                    running.calls = (self.now_us, 0);
                }
                self.input(node, Input::Timeout);
                Some(Touched {
                    node,
                    by_time: true,
                    from: None,
                })
            }
            Happening::Scanned {
                node,
                life,
                tally,
                since,
            } => {
                let running = &mut self.nodes[node];
                if running.life == life
                    && let Some(replica) = &mut running.replica
                {
                    replica.state_mut().set_tally_base(tally, since);
                    self.trace.count("tallies scanned");
                }
                None
            }
        }
    }

    fn dial_arrives(&mut self, from: usize, life: u64, id: LinkId, to: usize) {
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

    fn arrive(&mut self, name: u64, side: usize, parcel: Parcel) -> Option<usize> {
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

    /// Does what a replica asks for after it was called directly.
    pub fn poke(&mut self, node: usize) {
        self.take_outputs(node);
    }

    /// Tells a replica something, and does what it asks for.
    pub fn input(&mut self, node: usize, input: Input) {
        let now = self.now_at(node);
        if let Some(replica) = &mut self.nodes[node].replica {
            replica.handle_input(now, input);
            self.take_outputs(node);
        }
    }

    fn take_outputs(&mut self, node: usize) {
        if self.nodes[node].disk.has_crashed() {
            // The process died inside: nothing of what it was about to say got out.
            self.trace.count("crashes at a commit");
            self.kill(node, false);
            return;
        }
        while let Some(output) = self.nodes[node]
            .replica
            .as_mut()
            .and_then(Replica::poll_output)
        {
            let at = [self.now_us, node as u64];
            self.trace.digest_numbers(&at);
            match output {
                Output::Event(event) => self.event(node, event),
                Output::Send(id, bytes) => self.send_bytes(node, id, bytes),
                Output::Close(id) => self.close_link(node, id),
                Output::Connect(id, address) => self.dial(node, id, &address),
            }
        }
        self.plan_wake(node);
    }

    fn plan_wake(&mut self, node: usize) {
        let now_us = self.now_us;
        let running = &mut self.nodes[node];
        let next = running.replica.as_ref().and_then(Replica::next_timeout);
        let Some(next) = next.map(|next| next.max(now_us)) else {
            running.wake_us = None;
            return;
        };
        if running.wake_us != Some(next) {
            running.wake_us = Some(next);
            let life = running.life;
            self.schedule(next - now_us, Happening::Wakes { node, life });
        }
    }

    fn event(&mut self, node: usize, event: Event) {
        self.trace.digest_bytes(format!("{event:?}").as_bytes());
        self.trace.count(match &event {
            Event::Connect { .. } => "event connect",
            Event::Connection { .. } => "event connection",
            Event::PeerDiscovered { .. } => "event peer discovered",
            Event::PeerLost { .. } => "event peer lost",
            Event::Synced { .. } => "event synced",
            Event::Change { .. } => "event change",
            Event::Conflict { .. } => "event conflict",
            Event::Error { error, .. } => error_name(error),
            Event::ClockSkew { .. } => "event clock skew",
            Event::Divergence { .. } => "event divergence",
            _ => "event of another kind",
        });
        if let Event::Error { address, error } = &event {
            self.trace.tell(self.now_us, || {
                let with = address.as_ref().map(|address| format!(" with {address}"));
                format!("{node} error{}: {error}", with.unwrap_or_default())
            });
        }
        self.nodes[node].events.push(event);
    }

    fn send_bytes(&mut self, node: usize, id: LinkId, bytes: Bytes) {
        self.trace.digest_bytes(&bytes);
        self.trace.count_times("bytes sent", bytes.len() as u64);
        let Some(&(link, side)) = self.nodes[node].links.get(&id) else {
            return;
        };
        if self.recording == Some((link, side)) {
            self.recorded.push(bytes.clone());
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

    fn close_link(&mut self, node: usize, id: LinkId) {
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

    fn dial(&mut self, node: usize, id: LinkId, to: &Address) {
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

    fn delay(&mut self, from: usize, to: usize) -> u64 {
        let Weather {
            delay_min_us: min,
            delay_max_us: max,
            ..
        } = self.weather;
        let purpose = [3, from as u64, to as u64, self.happenings];
        chance(self.seed, &purpose).u64(min..=max)
    }

    /// Sends from one side of a link to the other, with what the weather does to it.
    fn send(&mut self, name: u64, from: usize, parcel: Parcel) {
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
    fn post(&mut self, name: u64, to: usize, parcel: Parcel) {
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

fn error_name(error: &PeerError) -> &'static str {
    match error {
        PeerError::Unreachable { .. } => "event error: unreachable",
        PeerError::Frame(_) => "event error: no frame",
        PeerError::Malformed(_) => "event error: malformed",
        PeerError::Misbehaved(_) => "event error: misbehaved",
        PeerError::Stalled { .. } => "event error: silent peer",
        PeerError::Busy { .. } => "event error: busy",
        PeerError::Broken { .. } => "event error: broken link",
        PeerError::Storage { .. } => "event error: own storage",
        _ => "event error of another kind",
    }
}

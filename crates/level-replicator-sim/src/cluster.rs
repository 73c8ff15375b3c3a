//! A whole cluster in one thread: replicas as production uses them, on simulated disks, clocks and
//! links, in virtual time.
//!
//! The rule: all that happens comes from one queue, in the order of time, and all chance from the
//! seed. A link is what TCP gives a program: bytes in order, in pieces of any size, late, or not at
//! all; and sometimes what it should never give: damaged, lost, repeated or swapped pieces.

mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::Now;
use level_replicator_core::config::Config;
use level_replicator_core::event::{Discovery, Event};
use level_replicator_core::record::{Op, Tally};
use level_replicator_core::replica::{Input, Output, Replica};
use level_replicator_core::session::{LinkId, PeerError};
use level_replicator_core::state::{ScanStart, State, StateError, Written, scan_tally};

use self::links::Link;
pub use self::links::{Piece, Weather};
use crate::chance::chance;
use crate::disk::Disk;
use crate::trace::Trace;

/// Where virtual wall clocks begin: a day in November 2023.
pub const WALL_START_US: u64 = 1_700_000_000_000_000;

/// So many calls of one replica at one moment are no progress but a loop.
const CALLS_AT_ONCE_MAX: u32 = 5_000;

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
    Synced {
        node: usize,
        life: u64,
    },
    Scanned {
        node: usize,
        life: u64,
        tally: Tally,
        start: ScanStart,
    },
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
    /// Pairs of replicas between which nothing arrives for now, though their links stay.
    pub frozen: Vec<(usize, usize)>,
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
    /// Who said that.
    recorded_of: usize,
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
            frozen: Vec::new(),
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
            recorded_of: 0,
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
            let start = state.begin_scan();
            let life = self.nodes[node].life;
            let scanned = Happening::Scanned {
                node,
                life,
                tally,
                start,
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

    /// A node hears of an address, as from an announcement.
    pub fn discover(&mut self, node: usize, peer: usize) {
        self.input(node, Input::Discovered(address(peer), Discovery::Multicast));
    }

    /// When the next thing happens, in microseconds; `None` if nothing ever will.
    pub fn next_us(&self) -> Option<u64> {
        self.first().map(|(at, _)| at)
    }

    /// Lets the next thing happen that happens before a time; `None` if there is no such thing, and
    /// then it is that time.
    pub fn step(&mut self, until_us: u64) -> Option<Option<Touched>> {
        let next = self.first().filter(|(at, _)| *at < until_us);
        let Some(next) = next else {
            self.now_us = self.now_us.max(until_us);
            return None;
        };
        let (at, happening) = (next.0, self.queue.remove(&next)?);
        self.now_us = self.now_us.max(at);
        Some(self.happen(happening))
    }

    /// The place in the queue of what happens next.
    fn first(&self) -> Option<(u64, u64)> {
        if self.frozen.is_empty() {
            return self.queue.first_key_value().map(|(place, _)| *place);
        }
        let is_frozen = |happening: &Happening| {
            let Happening::Arrives { link, side, .. } = happening else {
                return false;
            };
            self.links.get(link).is_some_and(|link| {
                let (from, to) = (link.ends[1 - side].node, link.ends[*side].node);
                self.frozen.contains(&(from, to)) || self.frozen.contains(&(to, from))
            })
        };
        let mut queue = self.queue.iter();
        let next = queue.find(|(_, happening)| !is_frozen(happening));
        next.map(|(place, _)| *place)
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
            Happening::Synced { node, life } => {
                let running = &self.nodes[node];
                use level_replicator_core::storage::Storage;
                // A disk that fails to sync says nothing; it is asked again with the next epoch.
                if running.life != life || running.disk.sync().is_err() {
                    return None;
                }
                self.input(node, Input::Synced);
                Some(Touched {
                    node,
                    by_time: false,
                    from: None,
                })
            }
            Happening::Scanned {
                node,
                life,
                tally,
                start,
            } => {
                let running = &mut self.nodes[node];
                if running.life == life
                    && let Some(replica) = &mut running.replica
                {
                    replica.state_mut().end_scan(tally, start);
                    self.trace.count("tallies scanned");
                }
                None
            }
        }
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
                Output::Sync => {
                    let life = self.nodes[node].life;
                    let took = chance(self.seed, &[7, node as u64, self.now_us]).u64(1..3_000);
                    self.schedule(took, Happening::Synced { node, life });
                }
                Output::Scan => self.scan(node, 1_000),
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
            Event::Promoted => "event promoted",
            Event::Renamed { .. } => "event renamed",
            Event::Excluded { .. } => "event excluded",
            Event::WriterCollision { .. } => "event writer collision",
            Event::Rebuilt { .. } => "event rebuilt",
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

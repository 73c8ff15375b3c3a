//! What a replica says and does in one conversation.
//!
//! A [`Session`] decides what a message means; here it is done: greet, apply, begin a round, stream
//! it, end it.

use std::sync::Arc;
use std::time::Duration;

use super::Replica;
use crate::clock::{Clock, Dot, Now, WriterId};
use crate::delta::Delta;
use crate::event::{Discovery, Event, Origin, Peer};
use crate::frame::WIRE_VERSION;
use crate::limits::{
    ADDRESSES_PER_MESSAGE, DESCRIPTORS_PER_MESSAGE, RECORDS_FRAME_TARGET, SKEW_NOTICE_US,
    UNCLAIMED_PER_MESSAGE,
};
use crate::members::epoch_digest;
use crate::message::{Hello, Message};
use crate::mistake::{Mistake, is_planted};
use crate::record::{Key, Record};
use crate::replica::Output;
use crate::session::{
    End, Exchange, Greeting, Misbehavior, Outgoing, PeerError, Round, Session, Source, Step,
};
use crate::state::{Reach, StateError};
use crate::writers::{Descriptor, DescriptorError, Writers};

impl Replica {
    /// Does what the peer's messages ask for; answers whether the conversation goes on.
    pub(super) fn converse(&mut self, now: Now, session: &mut Session) -> Result<bool, PeerError> {
        loop {
            let writers = Arc::clone(self.state.writers());
            let Some(step) = session.next_step(now, &self.config, &writers)? else {
                break;
            };
            if let Some(context) = session.untaken_context()
                && !self.state.may_take_from(&context)
            {
                session.refuse_incoming();
            }
            let is_after_hello = !matches!(step, Step::Greet);
            match step {
                Step::Nothing => {}
                Step::Greet => {
                    if !self.meet(now, session)? {
                        return Ok(false);
                    }
                }
                Step::Describe(descriptors) => self.describe(&descriptors)?,
                Step::Answer => session.say_applied(self.state.clock(), true, false),
                Step::Apply(records, end) => self.apply(now, session, records, end)?,
                Step::Learn(addresses) => {
                    for address in addresses {
                        self.discovered(now, address, Discovery::Peer);
                    }
                }
                Step::Busy(retry_ms) => return Err(PeerError::Busy { retry_ms }),
                Step::Bye => return Ok(false),
                Step::Merge(news) => self.merge_cluster(now, session, &news)?,
                Step::Adopt => self.adopt_floor(session)?,
                Step::Follow(plan) => self.follow(now, session, &plan)?,
                Step::Look => self.look(session)?,
                Step::Differ(records) => self.report_differing(now, session, records)?,
                Step::TellAll => self.tell_all(now, session),
                Step::Want(keys) => {
                    session.wanted_keys = keys;
                    session.owes_claim = true;
                }
            }
            // It was begun under a name that was retired meanwhile.
            let said = session.greeting.as_ref().map(|said| said.hello.replica);
            if said.is_some_and(|said| said != self.state.replica()) {
                session.say(&Message::Bye);
                return Ok(false);
            }
            // What follows the first message proves that the peer hears us now.
            if session.greeting.is_some() && self.has_twin(session) && is_after_hello {
                self.leave_name_to_twin(now, session)?;
                return Ok(false);
            }
        }
        session.grant(now, &self.config);
        self.advance(now, session)?;
        Ok(true)
    }

    pub(super) fn greet(&mut self, now: Now, session: &mut Session) {
        let token = self.new_token(now, session);
        session.heals_elsewhere = self.healing.is_some();
        let clock = Arc::clone(self.state.clock());
        let hello = Hello {
            version_min: WIRE_VERSION,
            version_max: WIRE_VERSION,
            cluster: self.config.cluster.clone(),
            replica: self.state.replica(),
            instance: self.instance,
            clock_digest: clock.digest(),
            state_digest: self.state.tally().map(|tally| tally.digest),
            whole: self.state.is_whole(),
            heals: self.healing.is_some(),
            settled: !self.state.is_catching_up(),
            token,
            floor_digest: self.state.floor().short_digest(),
            cluster_digest: self.state.cluster_digest(),
            epoch_digest: epoch_digest(self.state.epoch()),
            addresses_digest: self.addresses_digest(),
            advertised: self.config.advertised.clone(),
        };
        session.say(&Message::Hello(hello.clone()));
        let floor = Arc::clone(self.state.floor());
        session.greeting = Some(Greeting {
            hello,
            clock,
            floor,
        });
    }

    /// The peer has said who it is; answers whether the conversation goes on.
    fn meet(&mut self, now: Now, session: &mut Session) -> Result<bool, PeerError> {
        let Some(hello) = session.hello.clone() else {
            return Ok(false);
        };
        if self.tokens.contains(&hello.token) {
            if let Some(dialed) = &session.dialed
                && let Some(peer) = self.peers.get_mut(dialed)
            {
                peer.is_self = true;
                peer.due_us = now.plus(self.config.idle_interval);
                for request in self.syncs.values_mut() {
                    request.waiting.remove(dialed);
                }
            }
            session.say(&Message::Bye);
            return Ok(false);
        }
        if hello.replica == self.state.replica() && hello.instance == self.instance {
            // A copy of our memory runs too: both of us have written under one name.
            self.end_collided_writer(now)?;
        }
        // The newcomer is a member before anything is sent to it.
        self.state
            .admit(hello.replica)
            .and_then(|_| self.state.note_life(now, hello.replica))
            .map_err(|error| storage_error(&error))?;
        self.remember(now, session, &hello);
        if !self.keep_one_link(now, session, &hello) {
            session.say(&Message::Bye);
            return Ok(false);
        }

        let peer = Peer {
            replica: hello.replica,
            address: session.remote.clone(),
        };
        let event = match session.dialed {
            Some(_) => Event::Connect { peer: peer.clone() },
            None => Event::Connection { peer: peer.clone() },
        };
        self.outputs.push_back(Output::Event(event));
        self.traffic.conversations += 1;
        if hello.addresses_digest != self.addresses_digest() {
            let mut addresses = self.known_addresses();
            addresses.truncate(ADDRESSES_PER_MESSAGE);
            session.say(&Message::Addresses(addresses));
        }

        session.exchange = Some(Exchange {
            since_us: now.steady_us,
            mine: Arc::clone(self.state.clock()),
            theirs: None,
            source: Source::Anything,
        });
        // What was said here may be older than what somebody waits for.
        session.wants_exchange |= !self.syncs.is_empty();
        // Both sides compare the same two hellos, so both come to the same end.
        let Some(greeting) = &session.greeting else {
            return Ok(false);
        };
        let (ours, clock) = (greeting.hello.clone(), Arc::clone(&greeting.clock));
        let floor = Arc::clone(&greeting.floor);
        if ours.floor_digest == hello.floor_digest {
            session.floor_told = Arc::clone(&greeting.floor);
            session.their_floor = Arc::clone(&greeting.floor);
        }
        if ours.epoch_digest == hello.epoch_digest {
            session.cut_told = ours.epoch_digest;
        }
        // Both sides see that they differ, so both tell, and wait for the other.
        session.awaits_cluster = ours.cluster_digest != hello.cluster_digest;
        if !session.awaits_cluster {
            session.cluster_told = ours.cluster_digest;
        }
        session.peer_heals = hello.heals;
        if ours.heals != session.heals_elsewhere {
            session.say_state();
        }
        self.ask_for_damaged(session);

        let equal = ours.clock_digest == hello.clock_digest;
        let settled = ours.settled && hello.settled || is_planted(Mistake::SettledByClock);
        if equal && settled {
            session.told = Clock::clone(&clock);
            session.know(clock);
            session.push = true;
            if ours.floor_digest != hello.floor_digest {
                session.awaits_floor = true;
                // By now it may hold what the peer has never heard of.
                session.say_floor_anyway(&floor, self.state.writers());
            }
            let is_whole = ours.whole && hello.whole || is_planted(Mistake::ScrubHalfHealed);
            let digests = ours
                .state_digest
                .zip(hello.state_digest)
                .filter(|_| is_whole);
            match digests {
                Some((ours, theirs)) if ours != theirs => self.notice_divergence(session, peer),
                Some(_) => self.agreed_us = Some(now.wall_us),
                None => {}
            }
        } else {
            if is_planted(Mistake::RememberedClock)
                && let Some(peer) = session.home.as_ref().and_then(|home| self.peers.get(home))
                && let Some(heard) = &peer.heard
            {
                session.know(Arc::clone(heard));
            }
            self.begin_round(now, session, false, None);
        }
        Ok(true)
    }

    /// Notes who lives at which address.
    fn remember(&mut self, now: Now, session: &mut Session, hello: &Hello) {
        if session.dialed.is_none()
            && let Some(advertised) = &hello.advertised
        {
            let home = if advertised.is_unspecified() {
                advertised.with_host_of(&session.remote)
            } else {
                advertised.clone()
            };
            self.discovered(now, home.clone(), Discovery::Peer);
            session.home = Some(home);
        }
        let home = session.home.as_ref();
        if let Some(peer) = home.and_then(|home| self.peers.get_mut(home)) {
            peer.replica = Some(hello.replica);
            peer.failures = 0;
        }
    }

    /// Lets go of all links but one to the same process; answers whether this one stays.
    ///
    /// When both sides dialed, both keep the link that the one with the lesser name made; names are
    /// compared with the processes' random numbers, for twins of one name. When one
    /// side dialed twice, that side lets go of the later link.
    fn keep_one_link(&mut self, now: Now, session: &Session, hello: &Hello) -> bool {
        let we_dialed = session.dialed.is_some();
        let ours_stays = (self.state.replica(), self.instance) < (hello.replica, hello.instance);
        let same_process = |other: &&Session| {
            other.hello.as_ref().is_some_and(|theirs| {
                theirs.replica == hello.replica && theirs.instance == hello.instance
            })
        };
        let others = self.sessions.values().filter(same_process);
        let others: Vec<_> = others
            .map(|other| (other.link, other.dialed.is_some()))
            .collect();
        for (other, other_dialed) in others {
            if we_dialed == other_dialed {
                if we_dialed {
                    return false;
                }
            } else if we_dialed == ours_stays {
                self.leave(now, other);
            } else {
                return false;
            }
        }
        true
    }

    fn describe(&mut self, descriptors: &[Descriptor]) -> Result<(), PeerError> {
        match self.state.describe(descriptors) {
            Ok(()) => Ok(()),
            Err(StateError::Descriptor(DescriptorError::UnknownParent { .. })) => {
                Err(Misbehavior::UnknownWriter.into())
            }
            Err(StateError::Descriptor(_)) => Err(Misbehavior::ContradictingWriter.into()),
            Err(error) => Err(storage_error(&error)),
        }
    }

    fn apply(
        &mut self,
        now: Now,
        session: &mut Session,
        records: Vec<(Key, Record)>,
        end: Option<End>,
    ) -> Result<(), PeerError> {
        let Some(context) = session.context() else {
            return Err(Misbehavior::NoRound.into());
        };
        let floor = session.healing_floor();
        let floor = floor.as_deref();
        let reached = session.reached();
        let part = match floor {
            Some(_) => Reach::Heal {
                to: reached.as_ref(),
            },
            None => Reach::Part,
        };
        let reach = match &end {
            None if is_planted(Mistake::ClaimBeforeApply) => Reach::Snapshot {
                unclaimed: &[],
                floor: None,
            },
            None | Some(End::Yield(None) | End::Unserved) => part,
            Some(End::Yield(Some(writer))) => Reach::Writer(*writer),
            Some(End::Claim(_)) if session.is_resumed() => Reach::Resumed { floor },
            Some(End::Claim(unclaimed)) => Reach::Snapshot { unclaimed, floor },
        };
        let claim = matches!(reach, Reach::Snapshot { .. } | Reach::Resumed { .. });
        self.traffic.received_records += records.len() as u64;
        let news = !records.is_empty() || (claim && !self.state.clock().covers(&context));
        if news && floor.is_none() {
            // It is adopted before the first record: what its sender has reclaimed is dead here too.
            self.adopt_floor(session)?;
            if !session.floor_is_adopted {
                return Err(Misbehavior::SkippedHeal.into());
            }
        }
        if news {
            if self.check_own_writes(&context).is_err() {
                self.end_collided_writer(now)?;
            }
            check_writers(self.state.writers(), &records, None)?;
            check_dots(&records)?;
            self.notice_skew(now, session, &records);
        }
        if claim || reached.is_some() {
            // What is claimed, now or by a heal that goes on from here, gets rows by its writers.
            check_writers(self.state.writers(), &[], Some(&context))?;
        }
        let nothing = Clock::default();
        let forgets = floor.is_some() && is_planted(Mistake::HealWithoutClock) && !claim;
        let joined = self
            .join(
                now,
                records,
                if forgets { &nothing } else { &context },
                reach,
            )
            .map_err(|error| storage_error(&error))?;
        if let Some(replica) = session.replica() {
            self.tell_changes(joined.changed, Origin::Peer(replica));
        }
        if joined.mended > 0 {
            self.note_mended();
        }
        if session.is_relief_due() {
            self.state.storage().relieve();
        }
        if let Some(damage) = joined.damage {
            if joined.passed_over {
                session.pass_over();
            }
            self.report_damage(now, session, &damage);
        }
        if end.is_some() {
            let heals = floor.is_some();
            if session.close_incoming() {
                self.helpless.extend(session.replica());
                if heals {
                    // Else the next one would go on from there, and both would say the same again at once.
                    self.state
                        .forget_progress()
                        .map_err(|error| storage_error(&error))?;
                }
            }
            self.end_heal(session);
            session.say_applied(self.state.clock(), false, true);
        }
        if end == Some(End::Unserved) {
            self.give_up_exchange(session);
        }
        if news {
            self.offer_on(now);
        }
        Ok(())
    }

    /// Says that something here is damaged, but not over and over. What waits for both sides to know
    /// the same waits in vain then.
    pub(super) fn report_damage(&mut self, now: Now, session: &mut Session, damage: &StateError) {
        self.give_up_exchange(session);
        session.damaged = true;
        self.note_damage(damage);
        self.ask_for_damaged(session);
        let reason = damage.to_string();
        let again = now.plus(self.config.idle_interval);
        let told = self.damage_told.as_ref();
        if told.is_none_or(|(before, until)| *before != reason || *until <= now.steady_us) {
            self.damage_told = Some((reason, again));
            self.tell_error(Some(session.remote.clone()), storage_error(damage));
        }
    }

    /// The two sides of a conversation cannot come to know the same.
    pub(super) fn give_up_exchange(&mut self, session: &mut Session) {
        session.exchange = None;
        for address in self.addresses_of(session) {
            for request in self.syncs.values_mut() {
                if request.waiting.remove(&address) {
                    request.failed.insert(address.clone());
                }
            }
        }
    }

    /// Finds a clock that knows writes of this process that it has not made. That takes two
    /// processes resumed from one memory image.
    pub(super) fn check_own_writes(&self, context: &Clock) -> Result<(), Misbehavior> {
        let Some(writer) = self.state.current_writer() else {
            return Ok(());
        };
        let theirs = context.get(writer);
        if theirs.is_some_and(|known| !self.state.clock().covers_writer(writer, known)) {
            return Err(Misbehavior::UnwrittenDots);
        }
        Ok(())
    }

    fn notice_skew(&mut self, now: Now, session: &mut Session, records: &[(Key, Record)]) {
        let stamps = records.iter().filter_map(|(_, record)| record.last_stamp());
        let latest = stamps.max().map_or(0, |stamp| stamp.as_micros());
        let ahead = latest.saturating_sub(now.wall_us);
        if ahead <= SKEW_NOTICE_US || session.skew_told {
            return;
        }
        if let Some(replica) = session.replica() {
            session.skew_told = true;
            let peer = Peer {
                replica,
                address: session.remote.clone(),
            };
            let ahead_ms = ahead / 1_000;
            let event = Event::ClockSkew { peer, ahead_ms };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// Sends what may be sent now, at most about one frame of records.
    pub(super) fn advance(&mut self, now: Now, session: &mut Session) -> Result<(), PeerError> {
        if session.damaged && session.wants_exchange {
            session.wants_exchange = false;
            self.give_up_exchange(session);
        }
        self.begin_wanted_exchange(now, session);
        if session.lacks_cluster(self.state.cluster_digest()) {
            session.say_cluster(self.state.members(), self.state.epoch());
        }
        loop {
            match std::mem::replace(&mut session.outgoing, Outgoing::Idle) {
                Outgoing::Asked(_) | Outgoing::Streaming(..) | Outgoing::Comparing(..)
                    if session.peer_heals =>
                {
                    self.end_unserved(now, session, false);
                }
                Outgoing::Comparing(round, leader)
                    if leader.is_ready() && session.has_window(&self.config) =>
                {
                    if self.lead(now, session, round, leader)? {
                        break;
                    }
                }
                Outgoing::Asked(round) if session.heard && !round.asks => {
                    self.begin_streaming(now, session, round);
                }
                Outgoing::Streaming(round, delta)
                    if session.has_window(&self.config) || round.is_over(now, &self.config) =>
                {
                    if self.stream(now, session, round, delta)? {
                        break;
                    }
                }
                Outgoing::Idle if session.due().is_some_and(|due| due <= now.steady_us) => {
                    self.begin_due_round(now, session);
                }
                waiting => {
                    session.outgoing = waiting;
                    break;
                }
            }
        }
        self.finish_exchange(now, session);
        self.begin_wanted_exchange(now, session);
        session.note_awaiting(now);
        Ok(())
    }

    /// Begins the exchange that a call of [`Replica::request_sync`] waits for.
    fn begin_wanted_exchange(&self, now: Now, session: &mut Session) {
        let may = session.heard && !session.peer_heals && !session.heals_elsewhere;
        if session.wants_exchange && may && session.exchange.is_none() {
            session.wants_exchange = false;
            session.offer_us = Some(0);
            session.exchange = Some(Exchange {
                since_us: now.steady_us,
                mine: Arc::clone(self.state.clock()),
                theirs: None,
                source: Source::Question,
            });
        }
    }

    /// Begins the round that is due: a push of our own writes if there are any, else an offer.
    fn begin_due_round(&mut self, now: Now, session: &mut Session) {
        if let Some(slice) = session.scrub.take() {
            self.begin_scrub(now, session, slice);
            return;
        }
        let clock = self.state.clock();
        let own = self.state.current_writer();
        let own_news = own.filter(|&writer| {
            let known = clock.get(writer);
            known.is_some_and(|known| !session.theirs.covers_writer(writer, known))
        });
        if std::mem::take(&mut session.push) && own_news.is_some() {
            self.begin_round(now, session, false, own_news);
            return;
        }
        let due = session.offer_us.is_some_and(|due| due <= now.steady_us);
        if due || !session.wanted_keys.is_empty() {
            session.offer_us = None;
            let question = session.exchange.as_mut();
            let question = question.filter(|exchange| exchange.source == Source::Question);
            let asked = question.is_some();
            if let Some(exchange) = question {
                exchange.source = Source::Answer;
            }
            let asked = asked || !session.wanted_keys.is_empty();
            if asked || session.owes_claim || !session.theirs.covers(clock) {
                self.begin_round(now, session, true, None);
            }
        }
    }

    pub(super) fn begin_round(
        &mut self,
        now: Now,
        session: &mut Session,
        asks: bool,
        only: Option<WriterId>,
    ) {
        let clock = Arc::clone(self.state.clock());
        session.say_clock(&clock, asks, self.state.writers());
        session.outgoing = Outgoing::Asked(Round {
            snapshot: self.state.storage().snapshot(),
            clock,
            floor: Arc::clone(self.state.floor()),
            wanted: self.state.unfinished(),
            writers: Arc::clone(self.state.writers()),
            unclaimed: self.state.unclaimed().take(UNCLAIMED_PER_MESSAGE).collect(),
            asks,
            only,
            started_us: now.steady_us,
        });
    }

    /// The peer could not understand our clock: the round begins again, from what is here now. An older
    /// snapshot would not do, for what was told since would be taken to be in it.
    fn tell_all(&mut self, now: Now, session: &mut Session) {
        let before = std::mem::replace(&mut session.outgoing, Outgoing::Idle);
        let asks = match &before {
            Outgoing::Asked(round) => round.asks,
            _ => false,
        };
        self.begin_round(now, session, asks, None);
    }

    fn begin_streaming(&mut self, now: Now, session: &mut Session, mut round: Round) {
        if session.names_unknown_parents() && session.tell_all_next() {
            self.begin_round(now, session, false, None);
            return;
        }
        // In a round that cannot bring them they are not brought: they will be asked for again.
        let wanted_keys = std::mem::take(&mut session.wanted_keys);
        if !round.wanted.is_empty() && !session.theirs.covers(&round.wanted) {
            self.end_unserved(now, session, true);
            return;
        }
        if is_planted(Mistake::LiveLog) {
            round.snapshot = self.state.storage().snapshot();
            round.writers = Arc::clone(self.state.writers());
        }
        if !round.clock.is_empty() {
            self.say_writers(session, &round.writers);
        }
        session.say_floor(&round.floor, &round.writers);
        let is_push = round.only.is_some();
        let unchecked =
            is_planted(Mistake::NoFloorCheck) || (is_push && is_planted(Mistake::PushBelowFloor));
        if !session.theirs.covers(&round.floor) && !unchecked {
            self.begin_comparing(session, round);
            return;
        }
        let mut delta = Delta::new(
            Arc::clone(&round.snapshot),
            Arc::clone(&round.writers),
            &round.clock,
            Arc::clone(&session.theirs),
            round.only,
        );
        delta.want(wanted_keys);
        session.outgoing = Outgoing::Streaming(round, Box::new(delta));
    }

    /// Describes the writers that the peer has not mentioned and was not told of.
    fn say_writers(&mut self, session: &mut Session, writers: &Writers) {
        let untold = writers.iter().skip(session.writers_told);
        let unknown: Vec<Descriptor> = untold
            .filter(|descriptor| session.theirs.get(descriptor.writer).is_none())
            .copied()
            .collect();
        for part in unknown.chunks(DESCRIPTORS_PER_MESSAGE) {
            session.say(&Message::Writers(part.to_vec()));
        }
        session.writers_told = writers.len();
    }

    /// Sends one piece of a round, or its end; answers whether that is enough for now.
    fn stream(
        &mut self,
        now: Now,
        session: &mut Session,
        round: Round,
        mut delta: Box<Delta>,
    ) -> Result<bool, PeerError> {
        let too_long = round.is_over(now, &self.config);
        let piece = if too_long {
            None
        } else {
            delta.next_piece().map_err(|error| storage_error(&error))?
        };
        if let Some(piece) = piece {
            let fills_frame = piece.payload.len() >= RECORDS_FRAME_TARGET / 2;
            self.traffic.sent_records += piece.records;
            session.say_records(now, piece);
            session.outgoing = Outgoing::Streaming(round, delta);
            return Ok(fills_frame);
        }

        let damage = delta.take_damage();
        let damage = damage.filter(|_| !is_planted(Mistake::DamageSkipped));
        let rest_is_known = match round.only {
            _ if is_planted(Mistake::PushClaimsAll) => true,
            None => true,
            Some(only) => (round.clock.iter())
                .filter(|(writer, _)| *writer != only)
                .all(|(writer, known)| session.theirs.covers_writer(writer, known)),
        };
        let in_time = !too_long || is_planted(Mistake::YieldAsClaim);
        let complete = damage.is_none() && in_time;
        session.owes_claim = !(complete && rest_is_known);
        if session.owes_claim {
            let gapless = delta.is_gapless() || is_planted(Mistake::WholeThoughReplaced);
            let whole = round.only.filter(|_| complete && gapless);
            let unserved = damage.is_some();
            session.say(&Message::Yield { whole, unserved });
            // Damage does not pass by itself, so trying again at once would be in vain.
            let pause = match &damage {
                Some(_) => self.config.idle_interval,
                None if too_long => Duration::ZERO,
                None => self.config.relay_delay,
            };
            session.offer_by(now.plus(pause));
        } else {
            let unclaimed = round.unclaimed.clone();
            session.say(&Message::Claim { unclaimed });
            session.claimed = Arc::clone(&round.clock);
        }
        session.outgoing = Outgoing::Ended;
        if let Some(damage) = damage {
            self.report_damage(now, session, &damage);
        }
        Ok(false)
    }

    /// Sees whether both sides now know what either knew when the exchange began.
    fn finish_exchange(&mut self, now: Now, session: &mut Session) {
        let Some(exchange) = &session.exchange else {
            return;
        };
        let Some(theirs) = &exchange.theirs else {
            return;
        };
        if !session.theirs.covers(&exchange.mine) || !self.state.clock().covers(theirs) {
            // It was told everything and has not taken it: something there is damaged.
            // In this order: of two clocks with many gaps it is not asked at every message of a heal.
            let was_told = matches!(session.outgoing, Outgoing::Idle)
                && !session.theirs.covers(&session.claimed)
                && session.claimed.covers(&exchange.mine);
            if was_told {
                self.give_up_exchange(session);
            }
            return;
        }
        let (since_us, source) = (exchange.since_us, exchange.source);
        session.exchange = None;
        self.met_somebody = true;
        self.tell_synced(session);
        self.plan_slice(now, session);
        if let Some(home) = &session.home
            && let Some(peer) = self.peers.get_mut(home)
        {
            peer.synced_us = Some(now.steady_us);
        }
        let reached = self.addresses_of(session);
        for request in self.syncs.values_mut() {
            if source == Source::Answer && since_us >= request.since_us {
                request.waiting.retain(|address| !reached.contains(address));
                request.failed.retain(|address| !reached.contains(address));
            }
        }
    }
}

pub(super) fn storage_error(error: &StateError) -> PeerError {
    PeerError::Storage {
        reason: error.to_string(),
    }
}

/// Checks that no write is live under two keys: the log could name only one of them.
pub(super) fn check_dots(records: &[(Key, Record)]) -> Result<(), Misbehavior> {
    let dots = |(key, record): &'_ (Key, Record)| -> Vec<(Dot, Key)> {
        let live = record.live.iter();
        live.map(|version| (version.dot, key.clone())).collect()
    };
    let mut all: Vec<(Dot, Key)> = records.iter().flat_map(dots).collect();
    all.sort_unstable();
    let is_twice = |pair: &[(Dot, Key)]| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1;
    if all.windows(2).any(is_twice) {
        return Err(Misbehavior::DotUnderTwoKeys);
    }
    Ok(())
}

/// Checks that every writer that records or a clock name was described.
pub(super) fn check_writers(
    writers: &Writers,
    records: &[(Key, Record)],
    clock: Option<&Clock>,
) -> Result<(), PeerError> {
    let live = records
        .iter()
        .flat_map(|(_, record)| &record.live)
        .map(|version| version.dot.writer);
    let seen = records
        .iter()
        .flat_map(|(_, record)| record.seen.iter())
        .map(|dot| dot.writer);
    let known = clock
        .into_iter()
        .flat_map(|clock| clock.iter())
        .map(|(writer, _)| writer);
    let mut last = None;
    for writer in live.chain(seen).chain(known) {
        if last != Some(writer) && writers.ord(writer).is_none() {
            return Err(Misbehavior::UnknownWriter.into());
        }
        last = Some(writer);
    }
    Ok(())
}

//! Who listens to which channels, and what is told there: changes of keys, by whomever.
//!
//! For each change of a key, `__keyspace@0__:KEY` is told what happened, and `__keyevent@0__:EVENT` to which key. The
//! events are `set`, `del` and `expired`, of local and of remote changes. Nothing is asked of the database until
//! somebody listens. A change is told when readers may see something else than before.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use level_replicator::ChangeKind;

use crate::resp::client::Client;
use crate::resp::glob;
use crate::resp::reply::{Protocol, ReplyWriter};

/// Everybody who listens.
#[derive(Default)]
pub(crate) struct Subscriptions {
    channels: Listeners,
    patterns: Listeners,
}

/// Listeners by what they listen to, each with its number.
type Listeners = HashMap<Vec<u8>, HashMap<u64, Rc<Client>>>;

/// What one connection listens to.
#[derive(Debug, Default)]
pub(crate) struct Subscribed {
    pub(crate) channels: BTreeSet<Vec<u8>>,
    pub(crate) patterns: BTreeSet<Vec<u8>>,
    bytes: usize,
}

/// Names of channels, or patterns of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Channel,
    Pattern,
}

impl Subscribed {
    pub(crate) fn len(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn names(&mut self, kind: Kind) -> &mut BTreeSet<Vec<u8>> {
        match kind {
            Kind::Channel => &mut self.channels,
            Kind::Pattern => &mut self.patterns,
        }
    }
}

impl Subscriptions {
    pub(crate) fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.patterns.is_empty()
    }

    /// Lets a connection listen.
    pub(crate) fn add(
        &mut self,
        client: &Rc<Client>,
        subscribed: &mut Subscribed,
        kind: Kind,
        name: &[u8],
    ) {
        if subscribed.names(kind).insert(name.to_vec()) {
            subscribed.bytes += name.len();
        }
        let listeners = self.listeners(kind).entry(name.to_vec()).or_default();
        listeners.insert(client.id, Rc::clone(client));
    }

    /// Lets a connection listen no more.
    pub(crate) fn remove(
        &mut self,
        client: &Client,
        subscribed: &mut Subscribed,
        kind: Kind,
        name: &[u8],
    ) {
        if subscribed.names(kind).remove(name) {
            subscribed.bytes -= name.len();
        }
        if let Some(listeners) = self.listeners(kind).get_mut(name) {
            listeners.remove(&client.id);
            if listeners.is_empty() {
                self.listeners(kind).remove(name);
            }
        }
    }

    /// Forgets a connection.
    pub(crate) fn remove_all(&mut self, client: &Client, subscribed: &mut Subscribed) {
        for name in std::mem::take(&mut subscribed.channels) {
            self.remove(client, subscribed, Kind::Channel, &name);
        }
        for name in std::mem::take(&mut subscribed.patterns) {
            self.remove(client, subscribed, Kind::Pattern, &name);
        }
        subscribed.bytes = 0;
    }

    /// Tells of a change.
    pub(crate) fn tell(&self, key: &[u8], kind: ChangeKind, bytes_max: usize) {
        let event = match kind {
            ChangeKind::Put => "set",
            ChangeKind::Delete => "del",
            ChangeKind::Expired => "expired",
        };
        let keyspace = [b"__keyspace@0__:", key].concat();
        self.publish(&keyspace, event.as_bytes(), bytes_max);
        let keyevent = format!("__keyevent@0__:{event}");
        self.publish(keyevent.as_bytes(), key, bytes_max);
    }

    fn publish(&self, channel: &[u8], payload: &[u8], bytes_max: usize) {
        if let Some(listeners) = self.channels.get(channel) {
            send(listeners, &[b"message", channel, payload], bytes_max);
        }
        for (pattern, listeners) in &self.patterns {
            if glob::matches(pattern, channel) {
                let parts: [&[u8]; 4] = [b"pmessage", pattern, channel, payload];
                send(listeners, &parts, bytes_max);
            }
        }
    }

    fn listeners(&mut self, kind: Kind) -> &mut Listeners {
        match kind {
            Kind::Channel => &mut self.channels,
            Kind::Pattern => &mut self.patterns,
        }
    }
}

/// Sends one message, written once for each version of the protocol.
fn send(listeners: &HashMap<u64, Rc<Client>>, parts: &[&[u8]], bytes_max: usize) {
    let mut written: [Option<Rc<[u8]>>; 2] = [None, None];
    for client in listeners.values() {
        let protocol = client.protocol.get();
        let slot = &mut written[usize::from(protocol == Protocol::Resp3)];
        let message = slot.get_or_insert_with(|| {
            let mut writer = ReplyWriter::new(protocol);
            writer.push(parts.len());
            parts.iter().for_each(|part| writer.bulk(part));
            writer.take().into()
        });
        client.mailbox.push(message, bytes_max);
    }
}

//! Sources of peers that a program brings itself.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use level_replicator::{
    Address, Error, Event, Options, PeerError, PeerSource, PeersCommand, Secret, Ticket,
};

use crate::common::{PATIENCE, alone, eventually, listening, open, text};

const OFTEN: Duration = Duration::from_millis(10);

/// A registry in memory.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Vec<Address>>>);

impl Registry {
    fn set(&self, addresses: &[String]) {
        let parsed = addresses
            .iter()
            .map(|address| address.parse().expect("an address"));
        *self.0.lock().expect("no panic") = parsed.collect();
    }
}

impl PeerSource for Registry {
    fn peers(&mut self) -> Vec<Address> {
        self.0.lock().expect("no panic").clone()
    }
}

#[test]
fn what_a_source_names_is_dialed_and_no_longer_when_it_is_not_named() {
    let first = open(listening());
    let named = open(listening());
    let registry = Registry::default();
    let db = open(
        listening()
            .peer_source(registry.clone(), OFTEN)
            .peer_source(registry.clone(), OFTEN)
            .peer(named.address()),
    );
    registry.set(&[first.address(), named.address()]);
    db.put("key", "value").expect("a write");
    eventually("the first has it", || text(&first, "key").is_some());
    registry.set(&[]);
    let knows = |address: &str| {
        db.peers()
            .iter()
            .any(|peer| peer.address.as_str() == address)
    };
    // The other, named by hand too, stays.
    eventually("the first is forgotten", || {
        !knows(&first.address()) || text(&named, "key").is_some()
    });
    assert!(knows(&named.address()));
    db.close().expect("it closes at once");
}

#[test]
fn a_source_that_fails_is_told_once() {
    let db = open(alone().peer_source(PeersCommand::new("exit 7"), OFTEN));
    let mut events = db.events();
    let failed = |event: &Event| match event {
        Event::Error {
            error: PeerError::Source { reason },
            ..
        } => reason.contains("'exit 7' failed"),
        _ => false,
    };
    let told = std::iter::from_fn(|| events.recv_timeout(PATIENCE)).find(failed);
    assert!(told.is_some());
    let again = std::iter::from_fn(|| events.recv_timeout(20 * OFTEN)).find(failed);
    assert_eq!(again, None);
}

#[test]
fn a_ticket_opens_the_cluster_that_it_names() {
    let secret = Secret::generate().expect("chance");
    let cluster = "a_ticket_opens";
    let first = open(listening().cluster(cluster).secret(secret.clone()));
    let address = first.address().parse().expect("an address");
    let text_form = Ticket::new(cluster, address, secret).to_text();
    let ticket: Ticket = text_form.parse().expect("a ticket");
    let second = open(Options::new().join(&ticket));
    first.put("key", "value").expect("a write");
    second.sync_now(PATIENCE).expect("the first is there");
    assert_eq!(text(&second, "key").as_deref(), Some("value"));
    assert!(matches!(
        "lr1:nonsense".parse::<Ticket>(),
        Err(Error::InvalidTicket)
    ));
}

//! Announcing this replica on the local network, and hearing others.

use std::net::SocketAddr;
use std::time::Duration;

use level_replicator_core::address::Address;
use level_replicator_core::announcement::Announcement;
use level_replicator_core::event::Discovery;
use level_replicator_core::session::PeerError;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};

use super::multicast::{MAX_DATAGRAM_BYTES, Multicast, MulticastConfig};
use crate::driver::FromLink;

/// Pauses between the first announcements: datagrams get lost. Later ones come at the last pause.
const ANNOUNCE_PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// What is announced, and with which keys.
pub(crate) struct Lan {
    pub(crate) config: MulticastConfig,
    pub(crate) instance: u64,
    /// Where peers can reach us; `None` hears others but cannot be dialed.
    pub(crate) advertised: Option<Address>,
    /// The first signs, all are accepted.
    pub(crate) keys: Vec<[u8; 32]>,
}

impl Lan {
    /// Announces and hears until the task is dropped. Says once if it cannot.
    pub(crate) async fn run(self, driver: Sender<FromLink>) {
        let multicast = match Multicast::join(&self.config) {
            Ok(multicast) => multicast,
            Err(error) => {
                let reason = error.to_string();
                let _ = driver
                    .send(FromLink::MulticastFailed(PeerError::Multicast { reason }))
                    .await;
                return;
            }
        };
        let _ = driver.send(FromLink::MulticastJoined).await;
        let mut pauses = ANNOUNCE_PAUSES.into_iter();
        let mut pause = ANNOUNCE_PAUSES[0];
        let mut announce_at = Instant::now();
        let mut buffer = [0; MAX_DATAGRAM_BYTES];
        loop {
            tokio::select! {
                () = sleep_until(announce_at) => {
                    // Interfaces come and go; while none is there, the next round tries again.
                    let _ = multicast.rejoin();
                    let _ = multicast.announce(&self.announcement(true)).await;
                    pause = pauses.next().unwrap_or(pause);
                    announce_at = Instant::now() + pause;
                }
                heard = multicast.receive(&mut buffer) => {
                    match heard {
                        Ok((len, from)) => {
                            self.hear(&multicast, &buffer[..len], from, &driver).await;
                        }
                        // A socket that fails at once each time must not take the whole thread.
                        Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                    }
                }
            }
        }
    }

    async fn hear(
        &self,
        multicast: &Multicast,
        datagram: &[u8],
        from: SocketAddr,
        driver: &Sender<FromLink>,
    ) {
        let mut decoded = self
            .keys
            .iter()
            .map(|key| Announcement::decode(datagram, key));
        let Some(Ok(heard)) = decoded.find(Result::is_ok) else {
            return;
        };
        if heard.instance == self.instance {
            return;
        }
        if heard.wants_answer {
            let _ = multicast.answer(from, &self.announcement(false)).await;
        }
        if heard.port == 0 {
            return;
        }
        let address: Address = match format!("{}:{}", heard.host, heard.port).parse() {
            Ok(address) => address,
            Err(_) => Address::from(SocketAddr::new(from.ip(), heard.port)),
        };
        let _ = driver
            .send(FromLink::Discovered(address, Discovery::Multicast))
            .await;
    }

    fn announcement(&self, wants_answer: bool) -> Vec<u8> {
        let reachable = self.advertised.as_ref();
        let named = reachable.filter(|address| !address.is_unspecified());
        let announcement = Announcement {
            instance: self.instance,
            wants_answer,
            host: named.map_or(String::new(), |address| address.host().to_owned()),
            port: reachable.map_or(0, Address::port),
        };
        self.keys
            .first()
            .map(|key| announcement.encode(key))
            .unwrap_or_default()
    }
}

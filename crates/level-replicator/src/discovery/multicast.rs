//! The datagrams of LAN discovery: one multicast group to announce to, and direct answers.
//!
//! Payloads are opaque here: others make them, authenticate them and bound how often they are
//! sent. What is heard may come from anyone on the network, and may be lost, doubled or forged.
//!
//! Two sockets share the work. The *group socket* listens on the port of the group, together
//! with every other process of this machine that does so. A unicast datagram to that port would
//! reach an arbitrary one of them, so the *unicast socket*, on a port of its own, sends the
//! announcements: their source address is then where answers go, and answers arrive there.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Mutex, MutexGuard, PoisonError};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::debug;

/// The longest payload sent or heard: with its headers it stays within the 576 bytes that every
/// IPv4 host must accept, far below where a LAN would fragment it.
pub(crate) const MAX_DATAGRAM_BYTES: usize = 512;

/// Where to announce.
#[derive(Debug, Clone)]
pub(crate) struct MulticastConfig {
    /// The group and its port, the same on every machine that shall be found.
    pub group: SocketAddrV4,
    /// Whether to speak and hear within this machine alone.
    pub loopback_only: bool,
}

impl Default for MulticastConfig {
    /// A group of the organization-local scope (RFC 2365), on every interface.
    fn default() -> Self {
        Self {
            group: SocketAddrV4::new(Ipv4Addr::new(239, 192, 76, 82), 7682),
            loopback_only: false,
        }
    }
}

/// Membership in one multicast group, on each interface by itself.
///
/// A membership without an interface would follow the default route, and fail where there is
/// none: on a LAN without a router, which is where discovery is most wanted.
#[derive(Debug)]
pub(crate) struct Multicast {
    config: MulticastConfig,
    group: UdpSocket,
    unicast: UdpSocket,
    /// The interfaces joined, by index, each with the address it announces from. Holding the
    /// lock is also the right to choose the interface the unicast socket announces on.
    joined: Mutex<BTreeMap<u32, Ipv4Addr>>,
}

impl Multicast {
    /// Joins the group on every usable interface, or on the loopback interface alone.
    ///
    /// A machine without any network joins on its loopback interface, until
    /// [`rejoin`](Self::rejoin) finds a better one.
    ///
    /// # Errors
    ///
    /// Names the group and the reason if the group is no multicast group, its port is taken
    /// exclusively, or no interface can join. Discovery is then impossible, at least for now;
    /// addresses that are known otherwise still serve.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn join(config: &MulticastConfig) -> io::Result<Self> {
        let name = config.group;
        if !name.ip().is_multicast() {
            return Err(invalid(format!("{name} is not a multicast group")));
        }
        if name.port() == 0 {
            return Err(invalid(format!("multicast group {name} lacks a port")));
        }

        let multicast = Self {
            group: group_socket(name).map_err(in_group(name))?,
            unicast: unicast_socket(config.loopback_only).map_err(in_group(name))?,
            joined: Mutex::default(),
            config: config.clone(),
        };
        multicast.rejoin()?;
        Ok(multicast)
    }

    /// Joins the interfaces that came, and lets go of those that went.
    ///
    /// To be called now and then: no event tells of such changes on every system.
    ///
    /// # Errors
    ///
    /// If no interface is joined afterwards. A later call may succeed.
    pub(crate) fn rejoin(&self) -> io::Result<()> {
        let usable = usable_interfaces(self.config.loopback_only).map_err(self.in_group())?;
        let group = SockRef::from(&self.group);
        let group_ip = self.config.group.ip();
        let mut joined = self.joined();

        // Memberships on vanished interfaces count against the limit the system sets to each
        // socket. Leaving may fail if the system was faster; the membership is gone either way.
        for (&index, address) in joined.iter() {
            if !usable.contains_key(&index) {
                debug!(index, %address, "leaving a vanished interface");
                let _ =
                    group.leave_multicast_v4_n(group_ip, &InterfaceIndexOrAddress::Index(index));
            }
        }

        // Systems may drop a membership when an interface goes down, so known interfaces are
        // joined again too. Failing to is the usual case: the membership still stands.
        let mut failure = None;
        let mut rejoined = BTreeMap::new();
        for (index, address) in usable {
            match group.join_multicast_v4_n(group_ip, &InterfaceIndexOrAddress::Index(index)) {
                Err(error) if !joined.contains_key(&index) => {
                    debug!(index, %address, %error, "cannot join the multicast group");
                    failure = Some(error);
                }
                Ok(()) | Err(_) => {
                    rejoined.insert(index, address);
                }
            }
        }

        *joined = rejoined;
        if joined.is_empty() {
            return Err(self.in_group()(failure.unwrap_or_else(no_interface)));
        }
        Ok(())
    }

    /// Announces to the group on every joined interface, this machine included.
    ///
    /// # Errors
    ///
    /// If the payload is too long, or no interface sends; one that does is enough.
    pub(crate) async fn announce(&self, payload: &[u8]) -> io::Result<()> {
        check_length(payload)?;
        let addresses: Vec<Ipv4Addr> = self.joined().values().copied().collect();

        let mut announced = false;
        let mut failure = None;
        for address in addresses {
            match self.announce_from(address, payload).await {
                Ok(_) => announced = true,
                Err(error) => {
                    debug!(%address, %error, "cannot announce on an interface");
                    failure = Some(error);
                }
            }
        }

        if !announced {
            return Err(self.in_group()(failure.unwrap_or_else(no_interface)));
        }
        Ok(())
    }

    /// Answers one sender directly, from the unicast socket.
    ///
    /// # Errors
    ///
    /// If the payload is too long, the system refuses to send, or the address lies beyond this
    /// machine although the loopback interface alone may be used.
    pub(crate) async fn answer(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        check_length(payload)?;
        if !self.may_talk_with(to.ip()) {
            return Err(invalid(format!("{to} is not a loopback address")));
        }

        let sent = self.unicast.send_to(payload, to).await;
        sent.map_err(|error| io::Error::new(error.kind(), format!("answering {to}: {error}")))?;
        Ok(())
    }

    /// Waits for the next datagram on either socket; tells its length and its sender.
    ///
    /// Announcements of this very instance are heard too. Datagrams longer than
    /// [`MAX_DATAGRAM_BYTES`] or than the buffer are dropped, not cut. Dropping the future
    /// loses no datagram.
    ///
    /// # Errors
    ///
    /// If a socket fails for good. What goes wrong with a single datagram is skipped.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        // One byte more than allowed tells a datagram that is too long from the longest.
        let mut announcement = [0; MAX_DATAGRAM_BYTES + 1];
        let mut answer = [0; MAX_DATAGRAM_BYTES + 1];
        let limit = buffer.len().min(MAX_DATAGRAM_BYTES);

        loop {
            let (heard, datagram) = tokio::select! {
                heard = self.group.recv_from(&mut announcement) => (heard, &announcement),
                heard = self.unicast.recv_from(&mut answer) => (heard, &answer),
            };

            match heard {
                Ok((length, sender)) if length <= limit && self.may_talk_with(sender.ip()) => {
                    buffer[..length].copy_from_slice(&datagram[..length]);
                    return Ok((length, sender));
                }
                Ok((length, sender)) => debug!(length, %sender, "dropping a datagram"),
                Err(error) if concerns_one_datagram(&error) => debug!(%error, "skipping"),
                Err(error) => return Err(self.in_group()(error)),
            }
        }
    }

    async fn announce_from(&self, address: Ipv4Addr, payload: &[u8]) -> io::Result<usize> {
        let group = SockAddr::from(self.config.group);
        let choose_and_send = || {
            let _right_to_choose = self.joined();
            let unicast = SockRef::from(&self.unicast);
            unicast.set_multicast_if_v4(&address)?;
            unicast.send_to(payload, &group)
        };
        self.unicast
            .async_io(Interest::WRITABLE, choose_and_send)
            .await
    }

    /// The sockets are bound so that a machine keeps to itself if it shall. Where the system
    /// cannot bind a socket to a group, strangers may still reach the group's port.
    fn may_talk_with(&self, address: IpAddr) -> bool {
        !self.config.loopback_only || address.is_loopback()
    }

    fn joined(&self) -> MutexGuard<'_, BTreeMap<u32, Ipv4Addr>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_group(&self) -> impl Fn(io::Error) -> io::Error + use<> {
        in_group(self.config.group)
    }
}

/// Opens the socket that hears announcements, and shares its port with other processes.
fn group_socket(group: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;

    // The first shares the port among users on Linux, and at all on Windows; the second is what
    // the BSDs ask for, macOS included.
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;

    // Linux would otherwise deliver what other processes joined, on interfaces we did not.
    #[cfg(target_os = "linux")]
    socket.set_multicast_all_v4(false)?;

    // Windows asks the receiver, others the sender, whether a machine hears itself.
    #[cfg(windows)]
    socket.set_multicast_loop_v4(true)?;

    // Bound to the group, Linux passes on nothing sent to other groups, or by unicast, on the
    // same port. Windows refuses such a binding; the payload's authentication filters there.
    let address = match cfg!(target_os = "linux") {
        true => *group.ip(),
        false => Ipv4Addr::UNSPECIFIED,
    };
    bind(socket, SocketAddrV4::new(address, group.port()))
}

/// Opens the socket that announces, answers, and hears answers.
fn unicast_socket(loopback_only: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_multicast_ttl_v4(1)?;
    socket.set_multicast_loop_v4(true)?;

    let address = match loopback_only {
        true => Ipv4Addr::LOCALHOST,
        false => Ipv4Addr::UNSPECIFIED,
    };
    bind(socket, SocketAddrV4::new(address, 0))
}

fn bind(socket: Socket, address: SocketAddrV4) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Lists the interfaces to join by index, each with its first IPv4 address.
///
/// Tunnels are no LAN: an announcement would tell their far end of us, to no use. The loopback
/// interface serves only if there is nothing else, else each announcement came twice.
fn usable_interfaces(loopback_only: bool) -> io::Result<BTreeMap<u32, Ipv4Addr>> {
    let mut loopback = BTreeMap::new();
    let mut lan = BTreeMap::new();
    for interface in if_addrs::get_if_addrs()? {
        let (Some(index), IpAddr::V4(address)) = (interface.index, interface.ip()) else {
            continue;
        };
        if interface.is_oper_up() && !interface.is_p2p() {
            let side = match address.is_loopback() {
                true => &mut loopback,
                false => &mut lan,
            };
            side.entry(index).or_insert(address);
        }
    }

    match loopback_only || lan.is_empty() {
        true => Ok(loopback),
        false => Ok(lan),
    }
}

fn check_length(payload: &[u8]) -> io::Result<()> {
    let length = payload.len();
    if length > MAX_DATAGRAM_BYTES {
        return Err(invalid(format!(
            "datagram of {length} bytes exceeds the limit of {MAX_DATAGRAM_BYTES}"
        )));
    }
    Ok(())
}

/// Whether receiving may go on: Windows reports here that an earlier answer found nobody, and
/// that a datagram was longer than the buffer (`WSAEMSGSIZE`, which has no kind of its own).
fn concerns_one_datagram(error: &io::Error) -> bool {
    const WSAEMSGSIZE: i32 = 10040;
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    ) || cfg!(windows) && error.raw_os_error() == Some(WSAEMSGSIZE)
}

fn in_group(group: SocketAddrV4) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("multicast group {group}: {error}"))
}

fn no_interface() -> io::Error {
    io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        "no usable interface is up with an IPv4 address",
    )
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    /// Tells the other process of a test which port its group has.
    const GROUP_PORT: &str = "MULTICAST_TEST_GROUP_PORT";

    /// Long enough for a busy machine; a test that passes never waits for it.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn two_and_five_instances_hear_one_another() {
        for count in [2, 5] {
            let config = private_group();
            let instances: Vec<_> = (0..count).map(|_| join(&config)).collect();

            for (number, instance) in instances.iter().enumerate() {
                instance.announce(&[number as u8]).await.unwrap();
            }

            for instance in &instances {
                let mut heard = Vec::new();
                for _ in 0..count {
                    heard.push(hear(instance).await.0[0]);
                }
                heard.sort();
                assert_eq!(heard, (0..count).collect::<Vec<u8>>());
            }
        }
    }

    #[tokio::test]
    async fn an_answer_reaches_the_instance_that_announced_and_no_other() {
        let config = private_group();
        let (asking, answering, third) = (join(&config), join(&config), join(&config));

        asking.announce(b"who is there").await.unwrap();
        let (_, sender) = hear(&answering).await;
        answering.answer(sender, b"me").await.unwrap();
        asking.announce(b"thanks").await.unwrap();

        assert_eq!(sender, asking.unicast.local_addr().unwrap());
        let answer = (b"me".to_vec(), answering.unicast.local_addr().unwrap());
        let heard = [
            hear(&asking).await,
            hear(&asking).await,
            hear(&asking).await,
        ];
        assert!(heard.contains(&answer));
        assert_eq!(hear(&third).await.0, b"who is there");
        assert_eq!(hear(&third).await.0, b"thanks");
    }

    #[tokio::test]
    async fn the_longest_datagram_is_heard_and_a_longer_one_is_dropped() {
        let config = private_group();
        let (stranger, listener) = (join(&config), join(&config));
        let raw = SockRef::from(&stranger.unicast);
        raw.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
        let own = SockAddr::from(listener.unicast.local_addr().unwrap());

        for to in [SockAddr::from(config.group), own] {
            for length in [MAX_DATAGRAM_BYTES + 1, 9_000, MAX_DATAGRAM_BYTES] {
                raw.send_to(&vec![length as u8; length], &to).unwrap();
            }
            let longest = [MAX_DATAGRAM_BYTES as u8; MAX_DATAGRAM_BYTES];
            assert_eq!(hear(&listener).await.0, longest);
        }
    }

    #[tokio::test]
    async fn a_datagram_longer_than_the_buffer_is_dropped() {
        let config = private_group();
        let (speaker, listener) = (join(&config), join(&config));

        speaker.announce(b"long").await.unwrap();
        speaker.announce(b"ok").await.unwrap();

        let mut buffer = [0; 3];
        let (length, _) = listener.receive(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"ok");
    }

    #[tokio::test]
    async fn a_payload_over_the_limit_is_refused() {
        let multicast = join(&private_group());
        let payload = [0; MAX_DATAGRAM_BYTES + 1];

        let announced = multicast.announce(&payload).await.unwrap_err();
        let to = multicast.unicast.local_addr().unwrap();
        let answered = multicast.answer(to, &payload).await.unwrap_err();

        for error in [announced, answered] {
            assert_eq!(
                error.to_string(),
                "datagram of 513 bytes exceeds the limit of 512"
            );
        }
    }

    #[tokio::test]
    async fn dropping_a_receive_loses_no_datagram() {
        let config = private_group();
        let (speaker, listener) = (join(&config), join(&config));
        let mut buffer = [0; MAX_DATAGRAM_BYTES];
        let mut dropped = 0;

        for number in 0..100 {
            speaker.announce(&[number]).await.unwrap();

            let mut impatience = 0;
            let heard_at_last = async {
                loop {
                    tokio::select! {
                        heard = listener.receive(&mut buffer) => break heard.unwrap().0,
                        () = yields(impatience) => dropped += 1,
                    }
                    impatience = (impatience + 1) % 4;
                }
            };
            let heard = tokio::time::timeout(PATIENCE, heard_at_last).await;
            let heard = heard.expect("a datagram was lost");
            assert_eq!(&buffer[..heard], &[number]);
        }

        assert!(dropped > 0, "no receive was ever dropped");
    }

    #[tokio::test]
    async fn rejoining_keeps_what_is_joined() {
        let config = private_group();
        let (speaker, listener) = (join(&config), join(&config));

        for payload in [b"one", b"two"] {
            listener.rejoin().unwrap();
            speaker.rejoin().unwrap();
            speaker.announce(payload).await.unwrap();
            assert_eq!(hear(&listener).await.0, payload);
        }
    }

    #[tokio::test]
    async fn an_interface_that_vanished_is_let_go_and_harms_no_other() {
        let config = private_group();
        let (speaker, listener) = (join(&config), join(&config));
        let nowhere = Ipv4Addr::new(192, 0, 2, 250);
        speaker.joined().insert(u32::MAX >> 8, nowhere);

        speaker.announce(b"before").await.unwrap();
        speaker.rejoin().unwrap();
        speaker.announce(b"after").await.unwrap();

        assert!(!speaker.joined().values().any(|&address| address == nowhere));
        assert_eq!(hear(&listener).await.0, b"before");
        assert_eq!(hear(&listener).await.0, b"after");
    }

    #[tokio::test]
    async fn without_an_interface_announcing_fails_and_names_the_group() {
        let multicast = join(&private_group());
        multicast.joined().clear();

        let error = multicast.announce(b"anyone").await.unwrap_err();

        let expected = format!("multicast group {}: no usable", multicast.config.group);
        assert!(error.to_string().starts_with(&expected), "{error}");
    }

    #[tokio::test]
    async fn a_group_that_is_none_is_refused_by_name() {
        for (group, reason) in [
            ("10.0.0.1:7682", "10.0.0.1:7682 is not a multicast group"),
            ("239.1.2.3:0", "multicast group 239.1.2.3:0 lacks a port"),
        ] {
            let error = Multicast::join(&MulticastConfig {
                group: group.parse().unwrap(),
                loopback_only: true,
            })
            .unwrap_err();

            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert_eq!(error.to_string(), reason);
        }
    }

    #[tokio::test]
    async fn a_port_taken_exclusively_is_named() {
        let owner = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let mut config = private_group();
        let port = owner.local_addr().unwrap().port();
        config.group.set_port(port);

        let error = Multicast::join(&config).unwrap_err();

        let expected = format!("multicast group {}: ", config.group);
        assert!(error.to_string().starts_with(&expected), "{error}");
    }

    #[tokio::test]
    async fn on_loopback_only_nothing_is_said_to_other_machines() {
        let multicast = join(&private_group());

        let beyond = "192.0.2.1:9".parse().unwrap();
        let error = multicast.answer(beyond, b"me").await.unwrap_err();

        assert_eq!(error.to_string(), "192.0.2.1:9 is not a loopback address");
        assert!(multicast.unicast.local_addr().unwrap().ip().is_loopback());
        assert!(multicast.joined().values().all(Ipv4Addr::is_loopback));
    }

    #[tokio::test]
    async fn another_process_hears_an_announcement_and_answers_it() {
        let config = private_group();
        let here = join(&config);
        let (_, path) = module_path!().split_once("::").unwrap();
        let mut there = Command::new(std::env::current_exe().unwrap())
            .arg("--exact")
            .arg(format!("{path}::the_other_process"))
            .env(GROUP_PORT, config.group.port().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();

        let (greeting, other) = hear(&here).await;
        here.announce(b"from here").await.unwrap();
        let own = hear(&here).await;
        let answer = hear(&here).await;

        // The own announcement and its answer take two sockets, in no certain order.
        assert_eq!(greeting, b"from there");
        let mut heard = [own.0, answer.0];
        heard.sort();
        assert_eq!(heard, [b"from here".to_vec(), b"heard".to_vec()]);
        assert_ne!(other, here.unicast.local_addr().unwrap());
        assert!(there.wait().unwrap().success());
    }

    #[tokio::test]
    async fn the_other_process() {
        let mut config = private_group();
        // Elsewhere than in the child of the test above there is nothing to do.
        let Ok(port) = std::env::var(GROUP_PORT) else {
            return;
        };
        config.group.set_port(port.parse().unwrap());
        let there = join(&config);

        there.announce(b"from there").await.unwrap();
        assert_eq!(hear(&there).await.0, b"from there");
        let (heard, sender) = hear(&there).await;
        assert_eq!(heard, b"from here");
        there.answer(sender, b"heard").await.unwrap();
    }

    /// A group on this machine that no other test has.
    fn private_group() -> MulticastConfig {
        let free = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let mut config = MulticastConfig::default();
        config.group.set_port(free.local_addr().unwrap().port());
        config.loopback_only = true;
        config
    }

    fn join(config: &MulticastConfig) -> Multicast {
        Multicast::join(config).unwrap()
    }

    async fn hear(multicast: &Multicast) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; MAX_DATAGRAM_BYTES];
        let heard = tokio::time::timeout(PATIENCE, multicast.receive(&mut buffer)).await;
        let (length, sender) = heard.expect("nothing was heard").unwrap();
        (buffer[..length].to_vec(), sender)
    }

    async fn yields(count: usize) {
        for _ in 0..count {
            tokio::task::yield_now().await;
        }
    }
}

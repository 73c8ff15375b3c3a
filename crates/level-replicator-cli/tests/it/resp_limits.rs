//! Every bound: values, requests, clients, subscribers, those who say nothing and those who do not read.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use level_replicator::Options;

use crate::resp::{Client, Reply, Served, bulk, ok, request, until};

const VALUE_MAX: usize = 1 << 20;

/// What other tests may take meanwhile, which run in the same process.
const OTHERS_KIB: u64 = 1 << 20;

/// Values up to 1 MiB.
fn small() -> Served {
    let options = Options::new().value_bytes_max(VALUE_MAX);
    Served::start_with(options, |options| options.value_bytes_max = VALUE_MAX)
}

#[test]
fn a_value_at_the_limit_is_taken_and_one_over_it_is_refused() {
    let served = small();
    let (mut client, mut other) = (served.client(), served.client());
    let value = vec![b'v'; VALUE_MAX];
    assert_eq!(client.call(&[b"SET", &b"a"[..], &value]), ok());
    assert!(client.say("GET a") == bulk(&value), "another value");
    assert_eq!(client.say("STRLEN a"), Reply::Integer(VALUE_MAX as i64));

    let over = vec![b'v'; VALUE_MAX + 1];
    let told = format!(
        "ERR value of {} bytes exceeds the limit of {VALUE_MAX}",
        VALUE_MAX + 1
    );
    assert_eq!(client.call(&[b"SET", &b"b"[..], &over]).error(), told);
    assert_eq!(client.say("APPEND a v").error(), told);
    assert_eq!(
        client
            .call(&[b"MSET", &b"c"[..], b"1", b"b", &over])
            .error(),
        told
    );
    assert_eq!(
        client.say("MGET b c"),
        Reply::Array(vec![Reply::Null, Reply::Null])
    );
    // Others who write at the same moment are not touched.
    client.send(&request(&[b"SET", &b"b"[..], &over]));
    other.send(&request(&["SET", "d", "1"]));
    assert_eq!((client.hear().error(), other.hear()), (&told[..], ok()));

    let long = vec![b'k'; 65_001];
    let told = "ERR key of 65001 bytes exceeds the limit of 65000";
    assert_eq!(client.call(&[b"SET", &long[..], b"1"]).error(), told);
    assert_eq!(client.call(&[b"GET", &long[..]]).error(), told);
    assert_eq!(client.call(&[b"SET", &long[1..], b"1"]), ok());
}

#[test]
fn one_transaction_that_is_too_large_fails_alone() {
    let served = Served::start();
    let (mut client, mut other) = (served.client(), served.client());
    let value = vec![b'v'; 8 << 20];
    assert_eq!(client.call(&[b"SET", &b"a"[..], &value]), ok());
    client.say("MULTI");
    client.say("SET b 1");
    // Each answers 8 MiB, which is read once and held until the end.
    let reads = request(&["GET", "a"]).repeat(40);
    client.send(&reads);
    for _ in 0..40 {
        assert_eq!(client.hear().text(), "QUEUED");
    }
    client.send(&request(&["EXEC"]));
    other.send(&request(&["SET", "c", "1"]));
    let told = client.hear();
    assert!(told.error().starts_with("ERR batch of "), "{told:?}");
    assert_eq!(other.hear(), ok());
    assert_eq!(
        client.say("MGET b c"),
        Reply::Array(vec![Reply::Null, bulk("1")])
    );
}

#[test]
fn a_declared_length_takes_no_memory() {
    let served = Served::start();
    let before = memory_kib();
    let mut clients: Vec<Client> = (0..200).map(|_| served.client()).collect();
    for client in &mut clients {
        client.send(b"*1048576\r\n$3\r\nSET\r\n$8388608\r\n");
    }
    // All of it was read when a later one is answered.
    assert_eq!(served.client().say("PING").text(), "PONG");
    let grown = memory_kib().saturating_sub(before);
    println!("200 requests that declare 8 MiB each: {grown} KiB");
    assert!(grown < OTHERS_KIB, "{grown} KiB");
}

#[test]
fn unfinished_requests_of_all_clients_are_bounded() {
    let served = Served::start_with(Options::new(), |options| {
        options.incomplete_bytes_max = 4 << 20;
    });
    let half = [
        &b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$8388608\r\n"[..],
        &vec![b'v'; 1 << 20],
    ]
    .concat();
    let mut clients: Vec<Client> = (0..12).map(|_| served.client()).collect();
    let mut sent = 0;
    for client in &mut clients {
        // One that is refused is closed while it sends.
        sent += usize::from(client.stream.write_all(&half).is_ok());
    }
    assert!(sent > 0);
    let mut asking = served.client();
    until("some are given up", || {
        let info = asking.say("INFO clients").text();
        let line = info
            .lines()
            .find(|line| line.starts_with("connected_clients:"));
        let count = line.and_then(|line| line.split(':').nth(1)?.parse::<usize>().ok());
        count.is_some_and(|count| (2..=5).contains(&count))
    });
    // When they go there is room again.
    drop(clients);
    until("their memory is free", || {
        asking
            .say("INFO memory")
            .text()
            .contains("waiting_request_bytes:0\r\n")
    });
    let value = vec![b'v'; 2 << 20];
    assert_eq!(asking.call(&[b"SET", &b"a"[..], &value]), ok());
}

#[test]
fn a_client_that_never_reads_is_given_up_and_holds_little() {
    let served = Served::start_with(Options::new(), |options| {
        options.write_timeout = Duration::from_millis(300);
    });
    let value = vec![b'v'; 1 << 20];
    let mut client = served.client();
    assert_eq!(client.call(&[b"SET", &b"a"[..], &value]), ok());
    let before = memory_kib();
    let mut deaf = served.client();
    deaf.send(&request(&["GET", "a"]).repeat(2_000));
    // Others are answered meanwhile, and it is gone after a while.
    until("it is given up", || {
        client
            .say("INFO clients")
            .text()
            .contains("connected_clients:1\r\n")
    });
    let grown = memory_kib().saturating_sub(before);
    println!("a client that asks for 2 GiB and reads nothing: {grown} KiB");
    assert!(grown < OTHERS_KIB, "{grown} KiB");
    deaf.hear_the_end();
}

#[test]
fn a_subscriber_that_never_reads_is_given_up() {
    let served = Served::start_with(Options::new(), |options| {
        options.subscriber_bytes_max = 64 << 10;
    });
    let mut deaf = served.client();
    deaf.say("PSUBSCRIBE *");
    let mut client = served.client();
    let key = "k".repeat(10_000);
    until("it is given up", || {
        client.call(&["SET", &key, "1"]);
        client
            .say("INFO clients")
            .text()
            .contains("connected_clients:1\r\n")
    });
    deaf.hear_the_end();
}

#[test]
fn no_more_clients_than_there_may_be() {
    let served = Served::start_with(Options::new(), |options| options.clients_max = 2);
    let mut clients = [served.client(), served.client()];
    for client in &mut clients {
        assert_eq!(client.say("PING").text(), "PONG");
    }
    let mut third = served.client();
    assert_eq!(third.hear().error(), "ERR max number of clients reached");
    third.hear_the_end();
    assert_eq!(clients[1].say("QUIT"), ok());
    clients[1].hear_the_end();
    until("there is room again", || {
        let mut next = served.client();
        next.send(b"PING\r\n");
        next.try_hear()
            .is_ok_and(|reply| reply == Reply::Simple("PONG".to_owned()))
    });
}

#[test]
fn a_client_that_says_nothing_is_disconnected_if_that_is_asked_for() {
    let served = Served::start_with(Options::new(), |options| {
        options.idle_timeout = Duration::from_millis(100);
    });
    let mut listener = served.client();
    listener.say("SUBSCRIBE __keyspace@0__:a");
    let began = Instant::now();
    served.client().hear_the_end();
    assert!(began.elapsed() >= Duration::from_millis(100));
    // A subscriber may listen for as long as it likes.
    assert_eq!(served.client().say("SET a 1"), ok());
    assert_eq!(listener.hear().items()[2], bulk("set"));
}

#[test]
fn thousands_of_idle_connections_cost_little() {
    let served = Served::start();
    // Both ends are in this process, and other tests run beside this one.
    let count = (open_files_max().saturating_sub(500) / 2).min(5_000);
    let before = memory_kib();
    let mut streams: Vec<TcpStream> = Vec::new();
    for _ in 0..count {
        let mut client = served.client();
        // Each was served once.
        assert_eq!(client.say("PING").text(), "PONG");
        streams.push(client.stream);
    }
    let grown = memory_kib().saturating_sub(before);
    println!("{count} idle connections: {grown} KiB");
    let mut client = served.client();
    let told = format!("connected_clients:{}\r\n", count + 1);
    assert!(client.say("INFO clients").text().contains(&told));
    assert!(grown < OTHERS_KIB, "{grown} KiB");
}

/// Memory of this process.
fn memory_kib() -> u64 {
    status_number("/proc/self/status", "VmRSS:")
}

/// How many files this process may have open.
fn open_files_max() -> usize {
    status_number("/proc/self/limits", "Max open files") as usize
}

/// The first number behind a name; a little where there is no such file.
fn status_number(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(1_000)
}

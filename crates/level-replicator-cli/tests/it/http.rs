//! The page, the status and the metrics over HTTP: who is answered what, and every bound.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use level_replicator::{Db, Options};
use level_replicator_cli::http::{HttpOptions, HttpServer};
use level_replicator_cli::resp::Password;
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Daemon, until};
use crate::resp::PATIENCE;
use crate::{command, run, stderr};

/// A database that is shown.
struct Shown {
    db: Db,
    server: HttpServer,
    _directory: TempDir,
}

impl Shown {
    fn start() -> Shown {
        Shown::start_with(Options::new(), |_| {})
    }

    fn start_with(options: Options, set: impl FnOnce(&mut HttpOptions)) -> Shown {
        let directory = tempfile::tempdir().expect("a directory");
        let db = options.open(directory.path()).expect("it opens");
        let mut shown = HttpOptions::new("127.0.0.1:0".parse().expect("an address"));
        set(&mut shown);
        let server = HttpServer::start(db.clone(), shown).expect("it starts");
        Shown {
            db,
            server,
            _directory: directory,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.server.address().as_str())
    }

    fn get(&self, path: &str) -> Answer {
        self.client().get(path)
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").body;
        let start = format!("level_replicator_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&start))?;
        value.parse().ok()
    }
}

struct Client {
    stream: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }
}

impl Client {
    fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Client {
            stream: BufReader::new(stream),
        }
    }

    fn send(&mut self, text: &str) {
        // Whoever is refused may be closed while it sends.
        let _ = self.stream.get_mut().write_all(text.as_bytes());
    }

    fn get(&mut self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    fn ask(&mut self, request: &str) -> Answer {
        self.send(request);
        let has_body = !request.starts_with("HEAD ");
        self.answer(has_body).expect("an answer")
    }

    /// The next answer, or `None` if the connection was closed.
    fn answer(&mut self, has_body: bool) -> Option<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut answer = Answer {
            status,
            headers,
            body: String::new(),
        };
        if has_body {
            let len = answer.header("content-length").parse().unwrap_or(0);
            let mut body = vec![0; len];
            self.stream.read_exact(&mut body).ok()?;
            answer.body = String::from_utf8(body).ok()?;
        }
        Some(answer)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Waits for the end; answers how long that took.
    fn hear_the_end(&mut self) -> Duration {
        let start = Instant::now();
        let mut rest = Vec::new();
        // A reset is an end too; that none comes is none.
        let end = self.stream.read_to_end(&mut rest);
        let is_timeout = end.is_err_and(|error| {
            matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            )
        });
        assert!(!is_timeout, "the connection stays open");
        start.elapsed()
    }
}

#[test]
fn every_path_answers_and_says_that_it_may_not_be_kept_or_framed() {
    let shown = Shown::start();
    shown.db.put("a", "1").expect("written");
    let mut client = shown.client();
    let cases = [
        ("/", 200, "text/html; charset=utf-8", "<!doctype html>"),
        ("/status", 200, "application/json", "\"keys\":1"),
        ("/recent", 200, "application/json", "[]"),
        (
            "/metrics",
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            "\nlevel_replicator_keys 1\n",
        ),
        ("/healthz", 200, "text/plain; charset=utf-8", "ok\n"),
        ("/readyz", 200, "text/plain; charset=utf-8", "ready\n"),
        ("/nothing", 404, "text/plain; charset=utf-8", "nothing here"),
        ("/status/", 404, "text/plain; charset=utf-8", "nothing here"),
        ("/?a=b", 200, "text/html; charset=utf-8", "<!doctype html>"),
    ];
    for (path, status, kind, part) in cases {
        let answer = client.get(path);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (status, kind)
        );
        assert!(answer.body.contains(part), "{path}: {}", answer.body);
        for (name, expected) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), expected, "{path}: {name}");
        }
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("default-src 'none'"), "{path}: {policy}");
        assert!(
            policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{path}: {policy}");

        let head = client.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!((head.status, head.header("content-type")), (status, kind));
    }
    // All of them, on one connection.
    assert!(shown.metric("http_requests_total") >= Some(18.0));
    let policy = client.get("/");
    let policy = policy.header("content-security-policy");
    assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
}

#[test]
fn the_status_is_the_one_that_the_redis_protocol_tells() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(directory.path(), &["--http", "127.0.0.1:0"]);
    assert_eq!(daemon.client().call("SET a 1"), "OK");
    let theirs = |text: &str| {
        let status: Value = serde_json::from_str(text).expect("JSON");
        let names: Vec<String> = status
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect();
        (names, status["replica"].clone(), status["keys"].clone())
    };
    let told = theirs(&daemon.client().call("LR.STATUS"));
    assert_eq!(
        theirs(&Client::connect(&daemon.http).get("/status").body),
        told
    );
    assert_eq!(told.1, daemon.replica);

    let address = daemon.http.clone();
    let mut waiting = Client::connect(&address);
    let (status, logged) = daemon.stop();
    assert!(status.success(), "{logged}");
    waiting.hear_the_end();
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn nothing_can_be_changed_and_nothing_is_taken() {
    let shown = Shown::start();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
        for path in ["/", "/status", "/nothing"] {
            let answer = shown.client().ask(&format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            ));
            assert_eq!(answer.status, 405, "{method}");
            assert_eq!(answer.header("allow"), "GET, HEAD");
        }
    }
    for body in [
        "Content-Length: 4\r\n\r\nbody",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "Content-Length: 1000000000000\r\nExpect: 100-continue\r\n\r\n",
    ] {
        let mut client = shown.client();
        let answer = client.ask(&format!(
            "GET /status HTTP/1.1\r\nHost: localhost\r\n{body}"
        ));
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (413, "send no body\n")
        );
        client.hear_the_end();
    }
    let empty = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(shown.client().ask(empty).status, 200);
    let mut client = shown.client();
    assert_eq!(client.ask("nonsense\r\n\r\n").status, 400);
    client.hear_the_end();
}

#[test]
fn headers_have_a_largest_size() {
    let shown = Shown::start();
    let with = |bytes: usize| {
        let long = "x".repeat(bytes);
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: {long}\r\n\r\n")
    };
    assert_eq!(shown.client().ask(&with(12 << 10)).status, 200);
    let mut client = shown.client();
    client.send(&with(20 << 10));
    let answer = client.answer(true);
    assert!(answer.is_none_or(|answer| answer.status == 431));
    client.hear_the_end();

    let mut client = shown.client();
    client.send(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 20)));
    let answer = client.answer(true);
    assert!(answer.is_none_or(|answer| [414, 431].contains(&answer.status)));
    client.hear_the_end();
    assert_eq!(shown.get("/healthz").status, 200);
}

#[test]
fn a_connection_that_says_too_little_is_ended() {
    let shown = Shown::start_with(Options::new(), |options| {
        options.header_timeout = Duration::from_millis(300);
    });
    let mut silent = shown.client();
    let mut slow = shown.client();
    slow.send("GET /status HTTP/1.1\r\nHo");
    let mut idle = shown.client();
    assert_eq!(idle.get("/healthz").status, 200);
    assert_eq!(shown.get("/healthz").status, 200);
    // A byte now and then does not prolong it.
    let start = Instant::now();
    while start.elapsed() < PATIENCE && slow.stream.get_mut().write_all(b"x").is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(start.elapsed() < PATIENCE, "it goes on for ever");
    for client in [&mut silent, &mut slow, &mut idle] {
        client.hear_the_end();
    }
}

#[test]
fn connections_that_are_only_held_open_keep_nobody_out() {
    let shown = Shown::start_with(Options::new(), |options| {
        options.connections_max = 4;
        options.header_timeout = PATIENCE;
    });
    let mut held: Vec<Client> = (0..4).map(|_| shown.client()).collect();
    held[1].send("GET / HTTP/1.1\r\n");
    for _ in 0..20 {
        assert_eq!(shown.get("/healthz").status, 200);
    }
    // The oldest has gone.
    held[0].hear_the_end();
    assert!(shown.metric("http_refused_total") >= Some(1.0));
    assert!(shown.metric("http_connections") <= Some(4.0));
}

#[test]
fn a_client_that_never_reads_is_given_up() {
    let shown = Shown::start_with(Options::new(), |options| {
        options.write_timeout = Duration::from_millis(300);
        options.header_timeout = PATIENCE;
    });
    let mut deaf = shown.client();
    let wish = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2_000);
    let mut other = deaf.stream.get_ref().try_clone().expect("a handle");
    let sending = std::thread::spawn(move || {
        // It blocks, once nothing is read any more, until the connection ends.
        let _ = other.write_all(wish.as_bytes());
    });
    let is_alone = |count: &Option<f64>| *count == Some(1.0);
    until("it is gone", || shown.metric("http_connections"), is_alone);
    sending.join().expect("it ends");
    deaf.hear_the_end();
}

#[test]
fn without_a_password_only_numbers_and_localhost_are_answered() {
    let shown = Shown::start();
    let ask = |request: &str| shown.client().ask(&format!("{request}\r\n\r\n"));
    for host in [
        "localhost",
        "LOCALHOST:9100",
        "127.0.0.1:1",
        "10.1.2.3",
        "[::1]:9100",
    ] {
        let answer = ask(&format!("GET /status HTTP/1.1\r\nHost: {host}"));
        assert_eq!(answer.status, 200, "{host}");
    }
    for host in [
        "example.org",
        "example.org:9100",
        "127.0.0.1.example.org",
        "localhost.example.org",
    ] {
        let answer = ask(&format!("GET /status HTTP/1.1\r\nHost: {host}"));
        assert_eq!(answer.status, 403, "{host}");
        assert!(
            answer.body.contains("--http-password-file"),
            "{}",
            answer.body
        );
        assert!(!answer.body.contains("replica\":"));
    }
    let absolute = "GET http://example.org/status HTTP/1.1\r\nHost: localhost";
    assert_eq!(ask(absolute).status, 403);
    assert_eq!(ask("GET /status HTTP/1.1").status, 400);
    let two = "GET /status HTTP/1.1\r\nHost: localhost\r\nHost: example.org";
    assert_eq!(ask(two).status, 400);
    assert_eq!(ask("GET /status HTTP/1.0").status, 200);
}

#[test]
fn with_a_password_nobody_is_answered_who_does_not_know_it() {
    let shown = Shown::start_with(Options::new(), |options| {
        options.password = Password::new("open sesame");
    });
    let ask = |path: &str, given: Option<&str>| {
        let given = given.map_or(String::new(), |given| {
            format!("Authorization: Basic {}\r\n", STANDARD.encode(given))
        });
        let request = format!("GET {path} HTTP/1.1\r\nHost: shop.example.org\r\n{given}\r\n");
        shown.client().ask(&request)
    };
    for path in [
        "/", "/status", "/recent", "/metrics", "/healthz", "/readyz", "/nothing",
    ] {
        for given in [
            None,
            Some("anybody:"),
            Some("anybody:open"),
            Some("open sesame:"),
        ] {
            let answer = ask(path, given);
            assert_eq!(answer.status, 401, "{path} {given:?}");
            assert!(
                answer
                    .header("www-authenticate")
                    .starts_with("Basic realm=")
            );
            assert_eq!(answer.header("cache-control"), "no-store");
            assert!(!answer.body.contains("sesame"));
        }
    }
    for given in ["anybody:open sesame", ":open sesame"] {
        assert_eq!(ask("/status", Some(given)).status, 200);
    }
}

#[test]
fn an_address_that_is_open_or_taken_is_refused_with_what_to_do() {
    let shown = Shown::start();
    let refused = |listen: &str| {
        let options = HttpOptions::new(listen.parse().expect("an address"));
        let refused = HttpServer::start(shown.db.clone(), options).expect_err("refused");
        refused.to_string()
    };
    let open = refused("0.0.0.0:0");
    assert!(
        open.contains("no password") && open.contains("127.0.0.1"),
        "{open}"
    );
    let taken = refused(shown.server.address().as_str());
    assert!(taken.contains(shown.server.address().as_str()), "{taken}");
    assert!(
        taken.contains("choose another address by --http"),
        "{taken}"
    );

    let output = run(&["serve", "--path", "unused", "--http", "0.0.0.0:9100"]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("give one by --http-password-file"), "{said}");

    let directory = tempfile::tempdir().expect("a directory");
    let mut serving = command(&["serve", "--no-multicast", "--listen", "none"]);
    serving.args(["--resp", "none", "--http", shown.server.address().as_str()]);
    let output = serving.arg("--path").arg(directory.path()).output();
    let output = output.expect("the tool runs");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    let line = said.lines().last().unwrap_or_default();
    assert!(
        line.contains("cannot serve HTTP on") && line.contains("--http"),
        "{said}"
    );
}

#[test]
fn a_daemon_that_others_can_reach_asks_for_the_password() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("password");
    std::fs::write(&file, "open sesame\n").expect("written");
    let file = file.to_str().expect("a name");
    let more = ["--http", "0.0.0.0:0", "--http-password-file", file];
    let daemon = Daemon::start(&directory.path().join("one"), &more);
    let port = daemon.http.rsplit(':').next().expect("a port");
    let address = format!("127.0.0.1:{port}");
    assert_eq!(Client::connect(&address).get("/healthz").status, 401);
    let given = STANDARD.encode("prometheus:open sesame");
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: a.example.org\r\nAuthorization: Basic {given}\r\n\r\n"
    );
    assert_eq!(Client::connect(&address).ask(&request).status, 200);
    let (status, logged) = daemon.stop();
    assert!(status.success(), "{logged}");
    assert!(!logged.contains("sesame"), "{logged}");
}

#[test]
fn it_is_ready_once_it_has_met_a_peer_or_can_meet_none() {
    // A peer that takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = mute.local_addr().expect("an address").to_string();
    let shown = Shown::start_with(Options::new().peer(&address), |_| {});
    let answer = shown.get("/readyz");
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("no exchange with a peer"),
        "{}",
        answer.body
    );
    assert_eq!(answer.body.lines().count(), 1);
    assert_eq!(shown.get("/healthz").status, 200);

    drop(mute);
    until(
        "it gives up hope",
        || shown.get("/readyz").status,
        |&status| status == 200,
    );
    // Once ready, it stays so when it hears of somebody else.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("an address").to_string();
    shown.db.add_peer(&address).expect("an address");
    until(
        "it is known",
        || shown.get("/status").body,
        |body| body.contains(&address),
    );
    assert_eq!(shown.get("/readyz").status, 200);

    // What went wrong is remembered, once for each address.
    let told: Value = serde_json::from_str(&shown.get("/recent").body).expect("JSON");
    let told = told.as_array().expect("a list");
    let errors = told.iter().filter(|told| told["what"] == "error");
    assert_eq!(errors.count(), 1, "{told:?}");
    assert!(told[0]["times"].as_u64() >= Some(1) && told[0]["at_ms"].is_u64());
}

#[test]
fn a_replica_that_meets_a_peer_is_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let one = Daemon::start(&directory.path().join("one"), &[]);
    assert_eq!(one.client().call("SET a 1"), "OK");
    let more = ["--http", "127.0.0.1:0", "--peer", &one.listen];
    let two = Daemon::start(&directory.path().join("two"), &more);
    let ready = || Client::connect(&two.http).get("/readyz").status;
    until("it is ready", ready, |&status| status == 200);
    assert_eq!(two.client().call("GET a"), "1");

    let names = include_str!("../../../../docs/metrics.md");
    let text = Client::connect(&two.http).get("/metrics").body;
    let mut count = 0;
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let known = names.lines().any(|row| {
            let row = row
                .strip_prefix("| `")
                .and_then(|row| row.strip_prefix(words[2]));
            row.is_some_and(|row| row.starts_with(['`', '{']) && row.contains(words[3]))
        });
        assert!(
            known,
            "docs/metrics.md does not tell of a {} {}",
            words[3], words[2]
        );
        count += 1;
    }
    assert!(count > 30, "{text}");
}

#[test]
fn a_database_that_is_closed_is_not_healthy_and_a_stop_is_quick() {
    let shown = Shown::start();
    let mut idle = shown.client();
    assert_eq!(idle.get("/readyz").status, 200);
    let mut half = shown.client();
    half.send("GET /status HTTP/1.1\r\n");
    shown.db.close().expect("it closes");
    for path in ["/healthz", "/readyz"] {
        let answer = until(
            "it is seen",
            || shown.get(path),
            |answer| answer.status == 503,
        );
        assert!(answer.body.contains("closed"), "{}", answer.body);
    }
    // The page goes on to tell what is known.
    assert_eq!(shown.get("/").status, 200);
    let start = Instant::now();
    shown.server.stop();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    idle.hear_the_end();
    half.hear_the_end();
}

impl Client {
    /// The lines of a stream up to the next empty one: an event, or a sign of life.
    fn event(&mut self) -> Vec<String> {
        // What comes in chunks has their lengths between.
        let mut lines = Vec::new();
        loop {
            let line = self.line().expect("the stream goes on");
            match line.as_str() {
                "" if lines.is_empty() => {}
                "" => return lines,
                line if line.bytes().all(|byte| byte.is_ascii_hexdigit()) => {}
                line => lines.push(line.to_owned()),
            }
        }
    }

    fn follow(&mut self, query: &str, more: &str) -> Answer {
        self.send(&format!(
            "GET /v1/changes{query} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"
        ));
        let first = self.line().expect("an answer");
        let status = first.split(' ').nth(1).expect("a status");
        let mut headers = Vec::new();
        while let Some(line) = self.line().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").expect("a header");
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Answer {
            status: status.parse().expect("a number"),
            headers,
            body: String::new(),
        }
    }
}

/// The cursor and the change of an event.
fn told(event: &[String]) -> (String, Value) {
    let of = |name: &str| event.iter().find_map(|line| line.strip_prefix(name));
    let change = of("data: ").expect("a change");
    let id = of("id: ").expect("a cursor").to_owned();
    (id, serde_json::from_str(change).expect("an object"))
}

#[test]
fn changes_are_streamed_and_a_client_that_comes_back_goes_on_where_it_was() {
    let shown = Shown::start_with(Options::new().change_feed(true), |_| {});
    let db = &shown.db;
    db.put("user/1", "Ada").expect("a write");
    db.put("other", "x").expect("a write");
    db.put("user/2", [0xff, 0]).expect("a write");
    let mut client = shown.client();
    let begun = client.follow("?from=0&prefix=user%2F", "");
    assert_eq!(begun.status, 200);
    assert_eq!(begun.header("content-type"), "text/event-stream");
    assert_eq!(client.event(), [": changes"]);
    let (first, change) = told(&client.event());
    assert_eq!(
        (&change["key"], &change["value"]),
        (&"user/1".into(), &"Ada".into())
    );
    assert_eq!(
        (&change["kind"], &change["local"]),
        (&"put".into(), &true.into())
    );
    let (_, change) = told(&client.event());
    assert_eq!(
        (&change["key"], &change["value_b64"]),
        (&"user/2".into(), &"/wA=".into())
    );
    // And then as they come.
    db.delete("user/1").expect("a write");
    let (_, change) = told(&client.event());
    assert_eq!(
        (&change["key"], &change["kind"]),
        (&"user/1".into(), &"delete".into())
    );
    drop(client);

    let mut client = shown.client();
    let back = client.follow("?from=0", &format!("Last-Event-ID: {first}\r\n"));
    assert_eq!(
        (back.status, client.event()),
        (200, vec![": changes".to_owned()])
    );
    let keys: Vec<Value> = (0..3)
        .map(|_| told(&client.event()).1["key"].clone())
        .collect();
    assert_eq!(keys, ["other", "user/2", "user/1"]);

    // From now on, if nothing is said.
    let mut late = shown.client();
    late.follow("", "");
    assert_eq!(late.event(), [": changes"]);
    db.put("late", "").expect("a write");
    assert_eq!(told(&late.event()).1["key"], "late");

    for (query, status, words) in [
        ("?from=7-0123456789abcdef", 410, "does not hold all"),
        ("?from=nonsense", 400, "is no cursor"),
        ("?what=1", 400, "prefix and from"),
        ("?prefix=%", 400, "two hex digits"),
    ] {
        let answer = shown.get(&format!("/v1/changes{query}"));
        assert_eq!(answer.status, status, "{query}");
        assert!(answer.body.contains(words), "{query}: {}", answer.body);
    }
    let off = Shown::start();
    let answer = off.get("/v1/changes");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("--change-feed"), "{}", answer.body);

    // Streams do not hold up the end.
    let since = Instant::now();
    shown.server.stop();
    assert!(since.elapsed() < Duration::from_secs(5));
}

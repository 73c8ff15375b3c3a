//! Every command of the Redis protocol: right, missing and malformed arguments.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::resp::{Reply, Served, bulk, bulks, ok};

/// Says lines one after the other; each reply must be as written behind `=>`, in the short form of [`shown`].
fn check(lines: &str) {
    let served = Served::start();
    let mut client = served.client();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (said, expected) = line.split_once(" => ").expect("a line has an arrow");
        assert_eq!(shown(&client.say(said)).trim_end(), expected, "{said}");
    }
}

/// A reply in short: `nil`, `(1)`, `OK`, `"text"`, `["a" nil]`, `-ERR ...`.
fn shown(reply: &Reply) -> String {
    let several = |items: &[Reply]| items.iter().map(shown).collect::<Vec<_>>().join(" ");
    match reply {
        Reply::Simple(text) => text.clone(),
        Reply::Error(text) => format!("-{text}"),
        Reply::Integer(number) => format!("({number})"),
        Reply::Bulk(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Reply::Null => "nil".to_owned(),
        Reply::Array(items) => format!("[{}]", several(items)),
        other => format!("{other:?}"),
    }
}

#[test]
fn values_are_written_and_read() {
    check(
        r#"
        GET a => nil
        SET a 1 => OK
        get a => "1"
        SETNX a 2 => (0)
        SETNX b 2 => (1)
        SET a 3 NX => nil
        SET c 3 XX => nil
        SET a 4 xx get => "1"
        SET a 5 NX GET => "4"
        SET new 5 NX GET => nil
        GETSET a 6 => "4"
        GETSET none 6 => nil
        GETDEL none => "6"
        GETDEL none => nil
        APPEND a 7 => (2)
        APPEND d 7 => (1)
        STRLEN a => (2)
        STRLEN none => (0)
        MSET x 1 y 2 x 3 => OK
        MGET x none y x => ["3" nil "2" "3"]
        EXISTS x y x none => (3)
        TYPE x => string
        TYPE none => none
        DEL x x none => (1)
        UNLINK y => (1)
        DBSIZE => (4)
        GETEX a => "67"
        GETEX none EX 10 => nil
        "#,
    );
}

#[test]
fn mistakes_are_told_as_redis_tells_them() {
    check(
        r#"
        GET => -ERR wrong number of arguments for 'get' command
        GET a b => -ERR wrong number of arguments for 'get' command
        SET a => -ERR wrong number of arguments for 'set' command
        MSET a => -ERR wrong number of arguments for 'mset' command
        MSET a 1 b => -ERR wrong number of arguments for 'mset' command
        GET a => nil
        SET a 1 NX XX => -ERR syntax error
        SET a 1 EX => -ERR syntax error
        SET a 1 EX 10 PX 10 => -ERR syntax error
        SET a 1 EX 10 KEEPTTL => -ERR syntax error
        SET a 1 KEEPTTL EX 10 => -ERR syntax error
        SET a 1 QUICK => -ERR syntax error
        SET a 1 EX x => -ERR value is not an integer or out of range
        SET a 1 EX 0 => -ERR invalid expire time in 'set' command
        SET a 1 PX -1 => -ERR invalid expire time in 'set' command
        SET a 1 EX 9223372036854775807 => -ERR invalid expire time in 'set' command
        SETEX a 0 1 => -ERR invalid expire time in 'setex' command
        PSETEX a 0 1 => -ERR invalid expire time in 'psetex' command
        GETEX a QUICK => -ERR syntax error
        GETEX a EX 0 => -ERR invalid expire time in 'getex' command
        EXPIRE a x => -ERR value is not an integer or out of range
        EXPIRE a 1 QUICK => -ERR Unsupported option QUICK
        EXPIRE a 9223372036854775807 => -ERR invalid expire time in 'expire' command
        GET a => nil
        INCR a => -ERR counters need a merge type: concurrent increments would be lost
        DECR a => -ERR counters need a merge type: concurrent increments would be lost
        INCRBY a 2 => -ERR counters need a merge type: concurrent increments would be lost
        DECRBY a 2 => -ERR counters need a merge type: concurrent increments would be lost
        INCRBYFLOAT a 2 => -ERR counters need a merge type: concurrent increments would be lost
        HSET a b c => -ERR unknown command 'HSET', with args beginning with: 'a' 'b' 'c'
        SELECT 1 => -ERR DB index is out of range
        SELECT x => -ERR value is not an integer or out of range
        PING a b => -ERR wrong number of arguments for 'ping' command
        ECHO => -ERR wrong number of arguments for 'echo' command
        CLIENT => -ERR wrong number of arguments for 'client' command
        CLIENT ID x => -ERR wrong number of arguments for 'client|id' command
        CLIENT KILL x => -ERR unknown subcommand 'KILL' of 'client'
        CLIENT SETINFO color red => -ERR Unrecognized option 'color'
        CLIENT LIST TYPE red => -ERR Unknown client type 'red'
        CLIENT LIST ID x => -ERR Invalid client ID
        CONFIG GET => -ERR wrong number of arguments for 'config|get' command
        CONFIG REWRITE => -ERR unknown subcommand 'REWRITE' of 'config'
        COMMAND COUNT x => -ERR wrong number of arguments for 'command|count' command
        COMMAND GETKEYS PING => -ERR The command has no key arguments
        COMMAND GETKEYS NONE => -ERR Invalid command specified
        KEYS => -ERR wrong number of arguments for 'keys' command
        SCAN x => -ERR invalid cursor
        SCAN -1 => -ERR invalid cursor
        SCAN 7 => -ERR cursor is unknown here or was forgotten; begin again with 0
        SCAN 0 COUNT 0 => -ERR syntax error
        SCAN 0 COUNT x => -ERR value is not an integer or out of range
        SCAN 0 MATCH => -ERR syntax error
        FLUSHALL NOW => -ERR syntax error
        WAIT x 0 => -ERR value is not an integer or out of range
        WAIT 0 x => -ERR timeout is not an integer or out of range
        WAIT 0 -1 => -ERR timeout is negative
        LR.RANGE a => -ERR wrong number of arguments for 'lr.range' command
        LR.RANGE - + LIMIT => -ERR syntax error
        LR.RANGE - + LIMIT -1 => -ERR value is not an integer or out of range
        LR.RANGE - + BACKWARDS => -ERR syntax error
        LR.SIBLINGS => -ERR wrong number of arguments for 'lr.siblings' command
        LR.CONFLICTS 5 => -ERR syntax error
        LR.RESOLVE a => -ERR wrong number of arguments for 'lr.resolve' command
        LR.SYNC soon => -ERR timeout is not an integer or out of range
        LR.ADDPEER here => -ERR option address: 'here' is not an address: expected host:port with a port from 0 to 65535
        LR.DROPPEER here => -ERR option address: 'here' is not an address: expected host:port with a port from 0 to 65535
        LR.RETIRE me => -ERR id is no replica's: expected 32 hex digits
        LR.RETIRE 00000000000000000000000000000000 => -ERR no other member of the cluster is called 00000000000000000000000000000000: `status` lists them
        DBSIZE => (0)
        "#,
    );
}

#[test]
fn values_expire_and_say_when() {
    check(
        r#"
        TTL a => (-2)
        PTTL a => (-2)
        EXPIRE a 10 => (0)
        SET a 1 => OK
        TTL a => (-1)
        PTTL a => (-1)
        EXPIRETIME a => (-1)
        PERSIST a => (0)
        EXPIRE a 100 XX => (0)
        EXPIRE a 100 NX => (1)
        TTL a => (100)
        EXPIRE a 50 GT => (0)
        EXPIRE a 200 GT => (1)
        EXPIRE a 100 LT => (1)
        EXPIRE a 100 GT LT => -ERR GT and LT options at the same time are not compatible
        EXPIRE a 100 NX XX => -ERR NX and XX, GT or LT options at the same time are not compatible
        SET a 2 KEEPTTL => OK
        APPEND a 3 => (2)
        TTL a => (100)
        GETEX a PERSIST => "23"
        TTL a => (-1)
        GETEX a EX 70 => "23"
        TTL a => (70)
        SET a 4 => OK
        TTL a => (-1)
        SETEX a 60 5 => OK
        TTL a => (60)
        PSETEX a 60000 5 => OK
        TTL a => (60)
        SET a 6 EXAT 4102444800 => OK
        EXPIRETIME a => (4102444800)
        SET a 6 PXAT 4102444800000 => OK
        PEXPIRETIME a => (4102444800000)
        PEXPIREAT a 4102444801000 => (1)
        EXPIRETIME a => (4102444801)
        EXPIREAT a 4102444802 => (1)
        EXPIRETIME a => (4102444802)
        PEXPIRE a 60000 => (1)
        TTL a => (60)
        GETSET a 7 => "6"
        TTL a => (-1)
        EXPIRE a -1 => (1)
        GET a => nil
        SET b 1 EXAT 1 => OK
        GET b => nil
        "#,
    );
}

#[test]
fn a_value_is_gone_when_its_time_has_come() {
    let served = Served::start();
    let mut client = served.client();
    assert_eq!(client.say("SET a 1 PX 40"), ok());
    crate::resp::until("it expires", || client.say("GET a") == Reply::Null);
    assert_eq!(client.say("EXISTS a"), Reply::Integer(0));
    assert_eq!(client.say("SET a 2 XX"), Reply::Null);
    assert_eq!(client.say("SETNX a 2"), Reply::Integer(1));
}

#[test]
fn the_connection_and_the_server_tell_of_themselves() {
    check(
        r#"
        PING => PONG
        PING hello => "hello"
        ECHO hello => "hello"
        SELECT 0 => OK
        CLIENT GETNAME => nil
        CLIENT SETNAME worker => OK
        CLIENT GETNAME => "worker"
        CLIENT SETINFO LIB-NAME test => OK
        CLIENT SETINFO lib-ver 1 => OK
        CLIENT NO-EVICT on => OK
        CLIENT NO-TOUCH off => OK
        CONFIG GET * => []
        CONFIG SET notify-keyspace-events KEA => OK
        CONFIG SET maxmemory 1 => -ERR the configuration is that of the process and cannot be set here
        CONFIG RESETSTAT => OK
        COMMAND GETKEYS MSET a 1 b 2 => ["a" "b"]
        COMMAND GETKEYS GET a => ["a"]
        COMMAND INFO nosuch => [nil]
        LR.CONFLICTS => []
        LR.CONFLICTS LIMIT 5 => []
        LR.SIBLINGS a => []
        LR.RESOLVE a 1 => OK
        LR.SIBLINGS a => ["1"]
        LR.SYNC 100 => OK
        LR.PAUSE => OK
        LR.RESUME => OK
        LR.ADDPEER 127.0.0.1:1 => OK
        LR.DROPPEER 127.0.0.1:1 => OK
        WAIT 0 0 => (0)
        WAIT 1 1 => (0)
        QUIT => OK
        "#,
    );

    let served = Served::start();
    let mut client = served.client();
    client.say("CLIENT SETNAME worker");
    let list = client.say("CLIENT LIST").text();
    assert!(list.contains(" name=worker "), "{list}");
    assert_eq!(list, client.say("CLIENT INFO").text());
    let info = client.say("INFO").text();
    for line in [
        "redis_version:7.4.0\r\n",
        "loading:0\r\n",
        "connected_clients:1\r\n",
    ] {
        assert!(info.contains(line), "{info}");
    }
    client.say("SET a 1");
    let keyspace = client.say("INFO keyspace").text();
    assert_eq!(keyspace, "# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0\r\n");

    let count = client.say("COMMAND COUNT");
    let table = client.say("COMMAND");
    assert_eq!(count, Reply::Integer(table.items().len() as i64));
    assert_eq!(
        client.say("COMMAND LIST").items().len(),
        table.items().len()
    );
    assert_eq!(
        client.say("COMMAND DOCS").items().len(),
        2 * table.items().len()
    );
    let get = client.say("COMMAND INFO get");
    assert_eq!(get.items()[0].items()[1], Reply::Integer(2));

    let time = client.say("TIME");
    let seconds: u64 = time.items()[0].text().parse().expect("seconds");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    assert!(now.as_secs().abs_diff(seconds) <= 1);

    let digest = client.say("LR.DIGEST").text();
    assert_eq!(
        digest,
        format!("{:032x}", served.db.digest().expect("a digest"))
    );
    let status = client.say("LR.STATUS").text();
    assert!(status.starts_with('{') && status.ends_with('}'), "{status}");
    assert!(!client.say("LR.PEERS").text().is_empty());

    assert_eq!(client.say("QUIT"), ok());
    client.hear_the_end();
}

#[test]
fn keys_and_values_are_any_bytes() {
    let served = Served::start();
    let mut client = served.client();
    let key: Vec<u8> = (0..=255).collect();
    let value: Vec<u8> = (0..=255).rev().collect();
    assert_eq!(client.call(&[&b"SET"[..], &key, &value]), ok());
    assert_eq!(client.call(&[&b"GET"[..], &key]), bulk(&value));
    assert_eq!(client.call(&[&b"SET"[..], b"empty", b""]), ok());
    assert_eq!(client.say("GET empty"), bulk(""));
    let empty_key = client.call(&["GET", ""]);
    assert_eq!(
        empty_key.error(),
        "ERR key is empty: a key has 1 to 65000 bytes"
    );
}

#[test]
fn ranges_are_in_order_between_their_ends() {
    let served = Served::start();
    let mut client = served.client();
    for key in ["+", "-", "[", "a", "b", "c"] {
        client.call(&["SET", key, &format!("{key}{key}")]);
    }
    for (asked, expected) in [
        ("- + LIMIT 2", &["+", "++", "-", "--"][..]),
        ("- + REV LIMIT 2", &["c", "cc", "b", "bb"]),
        ("a c", &["a", "aa", "b", "bb"]),
        ("a c REV", &["b", "bb", "a", "aa"]),
        ("b +", &["b", "bb", "c", "cc"]),
        ("[- [[", &["-", "--"]),
        ("[+ [-", &["+", "++"]),
        ("[[ a", &["[", "[["]),
        ("[b c", &["b", "bb"]),
        ("c a", &[]),
        ("a a", &[]),
        ("+ -", &[]),
        ("- + LIMIT 0", &[]),
    ] {
        assert_eq!(
            client.say(&format!("LR.RANGE {asked}")),
            bulks(expected),
            "{asked}"
        );
    }
    assert_eq!(client.say("KEYS [a-b]"), bulks(&["a", "b"]));
    assert_eq!(client.say("KEYS *"), bulks(&["+", "-", "[", "a", "b", "c"]));
    assert_eq!(client.say("KEYS none"), bulks(&[]));
}

#[test]
fn flushall_deletes_everything() {
    let served = Served::start();
    let mut client = served.client();
    let mut batch = served.db.batch();
    for number in 0..25_000 {
        batch.put(format!("key-{number:05}"), "value");
    }
    batch.commit().expect("it is written");
    assert_eq!(client.say("DBSIZE"), Reply::Integer(25_000));
    assert_eq!(client.say("FLUSHALL ASYNC"), ok());
    assert_eq!(client.say("DBSIZE"), Reply::Integer(0));
    assert_eq!(client.say("FLUSHDB"), ok());
}

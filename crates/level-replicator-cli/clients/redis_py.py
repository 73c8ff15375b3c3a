"""redis-py against a running daemon: python redis_py.py HOST PORT PASSWORD"""

import sys
import threading
import time

import redis

host, port, password = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def refused(call, words):
    try:
        call()
    except redis.ResponseError as error:
        assert words in str(error), error
        return
    raise AssertionError("it was not refused")


def values(client):
    client.flushall()
    assert client.set("a", "1") and client.get("a") == "1"
    assert client.set("a", "2", nx=True) is None
    assert client.set("a", "2", get=True) == "1"
    assert client.mset({"b": "1", "c": "2"}) and client.mget("a", "b", "nothing") == ["2", "1", None]
    assert client.getset("b", "3") == "1" and client.getdel("b") == "3"
    assert client.append("c", "3") == 2 and client.strlen("c") == 2
    assert client.exists("a", "b", "c") == 2 and client.type("a") == "string"
    assert client.delete("a", "nothing") == 1 and client.unlink("c") == 1
    assert client.dbsize() == 0
    assert client.set("\0\r\n", b"\xff\0") and client.strlen("\0\r\n") == 2
    assert client.ping() and client.echo("x") == "x" and client.time()[0] > 0
    refused(lambda: client.incr("a"), "counters need a merge type")
    refused(lambda: client.execute_command("NOTHING"), "unknown command")
    refused(lambda: client.set("a", "1", ex=-1), "invalid expire time")


def expiry(client):
    assert client.set("a", "1", ex=100) and 0 < client.ttl("a") <= 100
    assert client.persist("a") and client.ttl("a") == -1 and client.ttl("nothing") == -2
    assert client.expire("a", 50) and not client.expire("a", 60, nx=True)
    assert client.pexpire("a", 20)
    deadline = time.time() + 10
    while client.get("a") is not None:
        assert time.time() < deadline
        time.sleep(0.005)


def scans(client):
    client.flushall()
    with client.pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.set(f"k:{number}", number)
        assert pipe.execute() == [True] * 1000
    found = list(client.scan_iter(match="k:*", count=7))
    assert len(found) == 1000 == len(set(found))
    assert len(client.keys("k:1?")) == 10
    assert client.execute_command("LR.RANGE", "k:1", "k:11", "LIMIT", 2) == ["k:1", "1", "k:10", "10"]


def transactions(client):
    client.set("n", "0")
    with client.pipeline() as pipe:
        assert pipe.set("a", "1").get("a").delete("a").execute() == [True, "1", 1]

    def add():
        own = connect(2)
        for _ in range(50):
            own.transaction(lambda pipe: pipe.set("n", int(pipe.get("n") or 0) + 1) if pipe.watching is None
                            else increment(pipe), "n")

    def increment(pipe):
        value = int(pipe.get("n"))
        pipe.multi()
        pipe.set("n", value + 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert client.get("n") == "200", client.get("n")


def messages(client):
    listener = client.pubsub()
    listener.psubscribe("__keyevent@0__:*")
    listener.subscribe("__keyspace@0__:a")
    assert [listener.get_message(timeout=5)["type"] for _ in range(2)] == ["psubscribe", "subscribe"]
    client.set("a", "1")
    told = [listener.get_message(timeout=5) for _ in range(2)]
    assert {message["data"] for message in told} == {"set", "a"}, told
    listener.close()


def reconnects(client):
    name = client.client_id()
    client.execute_command("QUIT")
    assert client.ping() and client.client_id() != name


def connect(protocol):
    return redis.Redis(host, port, password=password, protocol=protocol, decode_responses=True,
                       encoding_errors="replace")


for protocol in (2, 3):
    client = connect(protocol)
    for part in (values, expiry, scans, transactions, messages, reconnects):
        part(client)
    assert "redis_version" in client.info() and client.execute_command("LR.DIGEST")
    assert client.wait(0, 10) == 0
    client.close()
try:
    redis.Redis(host, port, password="wrong").ping()
except redis.AuthenticationError:
    pass
else:
    raise AssertionError("a wrong password was taken")
print("redis-py", redis.__version__, "is content")

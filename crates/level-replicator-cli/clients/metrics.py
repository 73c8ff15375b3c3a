"""The metrics of real daemons, by Prometheus's own reader: python metrics.py TOOL ROOT

Every name of docs/metrics.md is there and no other, they move as they should, and the rules and the dashboard use no other.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

import yaml
from prometheus_client.parser import text_string_to_metric_families

tool, root = sys.argv[1], pathlib.Path(sys.argv[2])
PREFIX = "level_replicator_"
# Those that there are only while a member has not agreed to an epoch, and once all data was compared.
SOMETIMES = {PREFIX + "member_silent_seconds", PREFIX + "verified_age_seconds"}


def documented():
    """Names, types and units of the table."""
    found = {}
    for line in (root / "docs/metrics.md").read_text().splitlines():
        row = re.match(r"\| `(level_replicator_\w+)(?:\{[^}]*\})?` \| (\w+) \|([^|]*)\|", line)
        if row:
            assert row[1] not in found, f"{row[1]} is there twice"
            found[row[1]] = (row[2], row[3].strip())
    assert len(found) > 30, found
    return found


class Daemon:
    def __init__(self, path, *more):
        words = ["serve", "--path", path, "--no-multicast", "--listen", "127.0.0.1:0", "--resp", "127.0.0.1:0"]
        words += ["--http", "127.0.0.1:0", "--change-feed", *more]
        self.process = subprocess.Popen([tool, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        said = dict(word.split("=", 1) for word in line.split()[1:])
        self.listen, self.resp, self.http = said["listen"], said["resp"], said["http"]

    def run(self, *words):
        subprocess.run([tool, *words, "--at", self.resp], check=True)

    def families(self):
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as response:
            assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
            return list(text_string_to_metric_families(response.read().decode()))

    def samples(self):
        return [sample for family in self.families() for sample in family.samples]

    def value(self, name, **labels):
        """The value of a metric, or None if it is not there."""
        values = [
            sample.value
            for sample in self.samples()
            if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
        ]
        assert len(values) <= 1, (name, values)
        return values[0] if values else None

    def until(self, what, is_right, name, **labels):
        deadline = time.time() + 30
        while True:
            value = self.value(name, **labels)
            if value is not None and is_right(value):
                return value
            assert time.time() < deadline, f"{what}: {name} {labels} is {value}"
            time.sleep(0.2)


def moving(directory):
    a = Daemon(f"{directory}/a")
    b = Daemon(f"{directory}/b", "--peer", a.listen)
    try:
        names = documented()
        info = [sample for sample in a.samples() if sample.name == PREFIX + "info"]
        assert len(info) == 1 and set(info[0].labels) == {"version", "replica", "cluster"}, info
        assert a.value("keys") == 0
        a.run("put", "a", "1")
        a.run("put", "b", "1")
        a.until("written keys are counted", lambda keys: keys == 2, "keys")
        b.until("and arrive", lambda keys: keys == 2, "keys")
        assert b.value("received_records_total") >= 2 and a.value("sent_records_total") >= 2
        assert b.value("writes_known") == 2 and b.value("changes_total") == 2
        a.run("delete", "a")
        a.until("a delete leaves a key less", lambda keys: keys == 1, "keys")
        peer = a.listen
        b.until("the peer is reached", lambda lag: lag == 0, "peer_lag_writes", peer=peer)
        b.until("it has been equal", lambda age: age < 30, "peer_synced_age_seconds", peer=peer)
        b.until("it has proved that", lambda age: age < 60, "agreed_age_seconds")
        b.until("both are members", lambda members: members == 2, "members", state="active")
        assert b.value("sync_state", state="settled") == 1
        assert [b.value("sync_state", state=state) for state in ("catching up", "healing")] == [0, 0]

        families = {}
        for family in a.families() + b.families():
            # The reader takes the end of a counter's name away.
            name = family.name + ("_total" if family.type == "counter" else "")
            families[name] = family.type
            assert family.documentation, name
        missing = set(names) - set(families) - SOMETIMES
        assert not missing, f"docs/metrics.md tells of {missing}, which are not there"
        unknown = set(families) - set(names)
        assert not unknown, f"docs/metrics.md does not tell of {unknown}"
        for name, kind in families.items():
            assert names[name][0] == kind, f"{name} is a {kind}"
            assert (kind == "counter") == name.endswith("_total"), name
            for unit in ("seconds", "bytes"):
                assert (names[name][1] == unit) == (unit in name.split("_")), f"{name} in {names[name][1]}"

        b.run("pause")
        b.until("a pause shows", lambda paused: paused == 1, "paused")
        a.run("put", "c", "from a")
        b.run("put", "c", "from b")
        b.run("resume")
        a.until("a conflict is counted", lambda conflicts: conflicts == 1, "conflicts")
        requests = a.value("http_requests_total")
        assert a.value("http_requests_total") > requests
        assert a.value("http_connections") >= 1 and a.value("http_refused_total") == 0

        a.process.kill()
        a.process.wait()
        b.until("a cut shows", lambda failures: failures > 0, "peer_failures", peer=peer)
        assert b.value("peer_connected", peer=peer) == 0 and b.value("peers_connected") == 0
        b.run("put", "d", "1")
        b.until("what the peer lacks is counted", lambda lag: lag > 0, "peer_lag_writes", peer=peer)
        return names
    finally:
        for daemon in (a, b):
            daemon.process.kill()
            daemon.process.wait()


def used(names):
    """The rules and the dashboard ask for nothing that is not there."""
    rules = yaml.safe_load((root / "dist/prometheus-alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert alerts
    for alert in alerts:
        assert alert["annotations"]["summary"] and alert["annotations"]["description"], alert
    dashboard = json.loads((root / "dist/grafana-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    expressions = [alert["expr"] for alert in alerts]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    expressions += [str(variable["query"]) for variable in dashboard["templating"]["list"]]
    mentioned = {name for expression in expressions for name in re.findall(PREFIX + r"\w+", expression)}
    assert mentioned <= set(names), f"not in docs/metrics.md: {mentioned - set(names)}"
    return len(alerts), len(panels)


with tempfile.TemporaryDirectory() as directory:
    names = moving(directory)
alerts, panels = used(names)
print(f"{len(names)} metrics, {alerts} alerts and {panels} panels are content")

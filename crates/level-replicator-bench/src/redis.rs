//! P13: the Redis protocol, beside Redis itself in the same run.
//!
//! Both are driven by `redis-benchmark`, by turns. It and `redis-server` must be installed.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use level_replicator::Options;
use level_replicator_cli::resp::{RespOptions, RespServer};

use crate::Result;
use crate::report::{Report, Row};

const CLIENTS: &str = "50";

/// How long Redis may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether what this needs is installed.
pub(crate) fn is_possible() -> bool {
    let runs = |program| {
        let mut asking = Command::new(program);
        let asked = asking.arg("--version").stdout(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    runs("redis-server") && runs("redis-benchmark")
}

pub(crate) fn measure(keys: u32, runs: u32, report: &mut Report) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let db = Options::new().open(scratch.path().join("ours"))?;
    let server = RespServer::start(db.clone(), RespOptions::new("127.0.0.1:0".parse()?))?;
    let ours = server.address().port();
    let redis = Redis::start()?;
    for (pipeline, set_goal, get_goal) in [("1", ">= 0.9", ">= 0.95"), ("16", ">= 0.4", ">= 0.6")] {
        for (test, goal) in [("set", set_goal), ("get", get_goal)] {
            let row = |of: &str, goal| {
                let what = test.to_uppercase();
                let name = format!(
                    "P13 redis-benchmark {what}, {CLIENTS} clients, -P {pipeline}, {of}; Redis"
                );
                Row::named(name, "1/s", goal)
            };
            let (mut one, mut many) = (row("one key", goal), row("keys by chance", ""));
            for _ in 0..runs {
                one.add(
                    rate(ours, test, pipeline, None)?,
                    rate(redis.port, test, pipeline, None)?,
                );
                let keys = Some(keys);
                many.add(
                    rate(ours, test, pipeline, keys)?,
                    rate(redis.port, test, pipeline, keys)?,
                );
            }
            report.add([one, many]);
        }
    }
    server.stop();
    db.close()?;
    Ok(())
}

/// Requests a second, as redis-benchmark counts them.
fn rate(port: u16, test: &str, pipeline: &str, keys: Option<u32>) -> Result<f64> {
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", test]);
    benchmark.args([
        "-c", CLIENTS, "-P", pipeline, "-n", "200000", "-d", "100", "--csv",
    ]);
    if let Some(keys) = keys {
        benchmark.args(["-r", &keys.to_string()]);
    }
    let output = benchmark.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find(|line| line.to_lowercase().starts_with(&format!("\"{test}\"")));
    let rate = line.and_then(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok());
    rate.ok_or_else(|| format!("redis-benchmark said: {text}").into())
}

/// A Redis that keeps nothing on disk, on a free port.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start() -> Result<Redis> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut starting = Command::new("redis-server");
        starting.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        starting.args(["--save", "", "--appendonly", "no"]);
        let child = starting.stdout(Stdio::null()).spawn()?;
        let redis = Redis { child, port };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() >= deadline {
                return Err("redis-server does not start".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

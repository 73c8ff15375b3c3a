//! Daemons for tests: started on free ports, and gone when they are dropped.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::command;

/// How long a daemon may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Daemon {
    child: Child,
    pub(crate) replica: String,
    pub(crate) listen: String,
    pub(crate) resp: String,
    pub(crate) http: String,
}

impl Daemon {
    /// A replica in a directory, with more flags.
    pub(crate) fn start(directory: &Path, more: &[&str]) -> Daemon {
        let mut starting = command(&["serve", "--no-multicast"]);
        starting.arg("--path").arg(directory);
        let has = |flag: &str| more.contains(&flag);
        if !has("--listen") {
            starting.args(["--listen", "127.0.0.1:0"]);
        }
        if !has("--resp") {
            starting.args(["--resp", "127.0.0.1:0"]);
        }
        if !has("--http") {
            starting.args(["--http", "none"]);
        }
        Daemon::of(starting.args(more))
    }

    pub(crate) fn of(starting: &mut Command) -> Daemon {
        let mut child = starting
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the tool runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let word = |name: &str| {
            let found = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name));
            found.map(str::to_owned)
        };
        let words = (
            word("replica="),
            word("listen="),
            word("resp="),
            word("http="),
        );
        let (Some(replica), Some(listen), Some(resp), Some(http)) = words else {
            let mut said = String::new();
            let _ = child
                .stderr
                .take()
                .map(|mut stderr| stderr.read_to_string(&mut said));
            panic!("no ready line but '{line}': {said}");
        };
        assert!(line.starts_with("ready replica="), "{line}");
        Daemon {
            child,
            replica,
            listen,
            resp,
            http,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.resp)
    }

    /// Runs a command of the tool against the daemon.
    pub(crate) fn run(&self, arguments: &[&str]) -> std::process::Output {
        let mut running = command(arguments);
        running
            .args(["--at", &self.resp])
            .output()
            .expect("the tool runs")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, as a service manager does; answers how it ended, and what it logged.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.expect("kill runs").success());
        let status = wait(&mut self.child);
        let mut said = String::new();
        let stderr = self.child.stderr.take();
        let _ = stderr.map(|mut stderr| stderr.read_to_string(&mut said));
        (status, said)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks until the answer is as it should be.
pub(crate) fn until<T: std::fmt::Debug>(
    what: &str,
    mut ask: impl FnMut() -> T,
    is_right: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if is_right(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: {answer:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

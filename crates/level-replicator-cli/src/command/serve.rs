//! `serve`: a replica as a daemon.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use level_replicator::{Db, Error, Event, Events, SyncState};
use tracing::level_filters::LevelFilter;

use super::{Failure, UsageError};
use crate::args::{LogFormat, LogLevel, ServeArgs};
use crate::http::HttpServer;
use crate::output::count;
use crate::resp::RespServer;
use crate::settings::{Settings, Surroundings};

/// How often it is looked whether a catch-up is to be told of, and how often while there is one.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const CATCH_UP_INTERVAL: Duration = Duration::from_millis(200);

/// Addresses of which it is remembered what was logged last.
const REMEMBERED_MAX: usize = 1_000;

/// How often a catch-up is told of in the log.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) fn run(args: ServeArgs) -> Result<(), Failure> {
    let settings = Surroundings::of_process().and_then(|around| Settings::gather(args, &around));
    let settings = settings.map_err(UsageError)?;
    start_logging(settings.log_format, settings.log_level);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let stop = stop_on_signal()?;

    let opened = settings.options.open(&settings.path);
    let db = opened.map_err(|error| match error {
        Error::InvalidOption { .. } => Failure::from(UsageError(error.to_string())),
        error => error.into(),
    })?;
    let events = db.events_but_changes();
    let logger = std::thread::Builder::new()
        .name("level-replicator-log".to_owned())
        .spawn(move || log_events(events))?;
    let resp = match settings.resp {
        None => None,
        Some(options) => Some(RespServer::start(db.clone(), options)?),
    };
    let http = match settings.http {
        None => None,
        Some(options) => Some(HttpServer::start(db.clone(), options)?),
    };
    if let Err(error) = announce(&db, resp.as_ref(), http.as_ref()) {
        // Whoever has started the daemon does not listen: no reason not to serve the others.
        tracing::warn!(%error, "cannot print the ready line");
    }
    follow_until(&db, &stop);

    tracing::info!("closing");
    drop(http);
    drop(resp);
    let closed = db.close();
    drop(db);
    // It ends with the database, and has no more to say.
    let _ = logger.join();
    Ok(closed?)
}

/// The line for whoever has started the daemon.
fn announce(db: &Db, resp: Option<&RespServer>, http: Option<&HttpServer>) -> std::io::Result<()> {
    let status = db.status();
    tracing::info!(replica = %status.replica, cluster = status.cluster, "ready");
    let shown = |address: Option<&level_replicator::Address>| {
        address.map_or_else(|| "none".to_owned(), |address| address.as_str().to_owned())
    };
    let mut stdout = std::io::stdout().lock();
    writeln!(
        stdout,
        "ready replica={} listen={} resp={} http={}",
        status.replica,
        shown(status.listen.as_ref()),
        shown(resp.map(RespServer::address)),
        shown(http.map(HttpServer::address)),
    )?;
    stdout.flush()
}

/// A receiver that gets something at SIGTERM, SIGHUP and Ctrl-C. The second of them ends the process at
/// once.
fn stop_on_signal() -> Result<Receiver<()>, Failure> {
    static SIGNALS: AtomicUsize = AtomicUsize::new(0);
    let (sender, receiver): (Sender<()>, Receiver<()>) = channel();
    ctrlc::set_handler(move || {
        if SIGNALS.fetch_add(1, Ordering::Relaxed) > 0 {
            std::process::exit(1);
        }
        let _ = sender.send(());
    })?;
    Ok(receiver)
}

/// Shows how a catch-up goes on, until the daemon is to end.
fn follow_until(db: &Db, stop: &Receiver<()>) {
    let mut catch_up: Option<(ProgressBar, Instant)> = None;
    loop {
        let pause = if catch_up.is_some() {
            CATCH_UP_INTERVAL
        } else {
            LOOK_INTERVAL
        };
        if stop.recv_timeout(pause).is_ok() {
            break;
        }
        let status = db.status();
        let keys = status.keys.unwrap_or(0);
        let what = match status.sync_state {
            SyncState::Settled => {
                if let Some((bar, _)) = catch_up.take() {
                    bar.finish_and_clear();
                    tracing::info!(keys, "caught up");
                }
                continue;
            }
            SyncState::CatchingUp => "catching up",
            SyncState::Healing => "being healed",
        };
        let (bar, told) = catch_up.get_or_insert_with(|| (spinner(), Instant::now()));
        bar.set_message(format!("{what}: {} keys", count(keys)));
        bar.tick();
        if told.elapsed() >= TELL_INTERVAL {
            *told = Instant::now();
            tracing::info!(keys, "{what}");
        }
    }
    if let Some((bar, _)) = catch_up {
        bar.finish_and_clear();
    }
}

fn spinner() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
    let bar = ProgressBar::new_spinner();
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn start_logging(format: LogFormat, level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second subscriber is refused; there is none.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// Writes what happened into the log, until the database is closed.
fn log_events(events: Events) {
    // What was said last of each address: one that cannot be reached is tried again and again.
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    for event in events {
        match event {
            Event::Listening { address } => tracing::info!(%address, "listening"),
            Event::PeerDiscovered { address, by } => {
                tracing::info!(%address, ?by, "peer discovered");
            }
            Event::PeerLost { address } => tracing::info!(%address, "peer lost"),
            Event::Conflict { key } => {
                tracing::info!(key = %key.escape_ascii(), "conflict: the key has concurrent values");
            }
            Event::Error { address, error } => {
                let address = address.map_or_else(String::new, |address| address.to_string());
                let text = error.to_string();
                if said.get(&address) == Some(&text) {
                    tracing::debug!(address, error = text, "error, again");
                    continue;
                }
                tracing::warn!(address, error = text, "error");
                if said.len() >= REMEMBERED_MAX {
                    said.clear();
                }
                said.insert(address, text);
            }
            Event::ClockSkew { peer, ahead_ms } => {
                tracing::warn!(peer = %peer.replica, ahead_ms, "a peer's clock is ahead");
            }
            Event::Divergence { peer, key, .. } => {
                let key = key.map(|key| key.escape_ascii().to_string());
                tracing::error!(peer = %peer.replica, key, "divergence: see docs/recovery.md");
            }
            Event::WriterCollision { writer, keys } => {
                tracing::warn!(%writer, keys, "two processes wrote under one name");
            }
            Event::Renamed { before, now } => tracing::warn!(%before, %now, "renamed"),
            Event::Excluded { replica } => {
                tracing::warn!(%replica, "a member was silent for the horizon: excluded");
            }
            Event::Promoted => {
                tracing::error!("promoted: nobody could finish the heal, see docs/recovery.md");
            }
            Event::Rebuilt { damage } => {
                tracing::error!(damage, "rebuilt from the data, see docs/recovery.md");
            }
            Event::Missed { count } => tracing::warn!(count, "events were too many to be logged"),
            Event::Connect { peer } => {
                said.remove(peer.address.as_str());
                tracing::debug!(peer = %peer.replica, "connect");
            }
            Event::Connection { peer } => tracing::debug!(peer = %peer.replica, "connection"),
            Event::Synced {
                peer,
                sent,
                received,
            } => {
                tracing::debug!(peer = %peer.replica, sent, received, "synced");
            }
            Event::Change { key, kind, .. } => {
                tracing::debug!(key = %key.escape_ascii(), ?kind, "change");
            }
            _ => {}
        }
    }
}

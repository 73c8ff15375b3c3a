//! A replica in a process of its own, which does what the lines on its input say.
//!
//! Each line is answered by one: `ok` and what was asked for as `name=number`, or `error` and why.

use std::collections::BTreeMap;
use std::io::stdin;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use level_replicator::storage::fjall::{FjallOptions, FjallStorage};
use level_replicator::{Db, Event, Options, Secret, SyncState};
use level_replicator_core::state::{State, read_record};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Storage, Table};

use crate::Result;
use crate::processes::{high_water, number};
use crate::workload::{numbered_key, numbered_value};

/// Keys of one batch.
const BATCH: u64 = 1_000;

/// How often a joining replica tells how far it is.
const TELL_INTERVAL: Duration = Duration::from_millis(100);

struct Obedient {
    db: Db,
    storage: Arc<FjallStorage>,
    renames: Arc<AtomicU64>,
    author: Option<JoinHandle<Result<Writes, String>>>,
    writes: Arc<Mutex<Writes>>,
}

/// The last acknowledged write of each key: its number, and whether it put something.
type Writes = BTreeMap<String, (u64, bool)>;

/// The writes that a value knows of: the last of each author.
type Names = BTreeMap<char, u64>;

/// Opens a directory as the first line says, tells where it listens, and obeys until the input ends.
pub(crate) fn play(secret: Secret, directory: &Path) -> Result<()> {
    let mut lines = stdin().lines();
    let first = lines.next().ok_or("nobody says how to open")??;
    let mut options = Options::new().secret(secret);
    let mut watches = false;
    for word in first.split_whitespace() {
        let (name, value) = word.split_once('=').ok_or("an option has a value")?;
        let ms = || Ok::<_, Box<dyn std::error::Error>>(Duration::from_millis(number(value)?));
        options = match name {
            "listen" => options.listen(value),
            "advertise" => options.advertise(value),
            "peer" => options.peer(value),
            "horizon" => options.horizon(ms()?),
            "reclaim" => options.reclaim_interval(ms()?),
            "idle" => options.idle_interval(ms()?),
            "watch" => {
                watches = true;
                options
            }
            _ => return Err(format!("no such option: {name}").into()),
        };
    }
    let storage = Arc::new(FjallStorage::open(directory, &FjallOptions::default())?);
    let db = options.open_with(storage.clone())?;
    let renames = Arc::new(AtomicU64::new(0));
    if watches {
        let (events, renames) = (db.events(), Arc::clone(&renames));
        std::thread::spawn(move || {
            let is_rename = |event: &Event| matches!(event, Event::Renamed { .. });
            for _ in events.filter(is_rename) {
                renames.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let listen = db.status().listen;
    println!("{}", listen.map_or("-".to_owned(), |at| at.to_string()));

    let mut obedient = Obedient {
        db,
        storage,
        renames,
        author: None,
        writes: Arc::default(),
    };
    for line in lines {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match obedient.obey(&words) {
            Ok(answer) => println!("ok {answer}"),
            Err(error) => println!("error {words:?}: {error}"),
        }
        if words == ["close"] {
            return Ok(());
        }
    }
    // Whoever is not told to close was let go.
    Ok(())
}

impl Obedient {
    fn obey(&mut self, words: &[&str]) -> Result<String> {
        let db = &self.db;
        match *words {
            ["fill", space, from, to, tag] => {
                let (space, tag) = (number(space)?, number(tag)?);
                self.in_batches(number(from)?..number(to)?, |batch, at| {
                    batch.put(numbered_key(space, at), numbered_value(space, at, tag));
                })?;
            }
            ["erase", space, from, to] => {
                let space = number(space)?;
                self.in_batches(number(from)?..number(to)?, |batch, at| {
                    batch.delete(numbered_key(space, at));
                })?;
            }
            // Some keys of many, spread over all of them.
            ["change", space, of, count, tag] => {
                let (space, of, count): (u64, u64, u64) =
                    (number(space)?, number(of)?, number(count)?);
                let (tag, every) = (number(tag)?, of / count);
                for at in 0..count {
                    let at = at * every + tag % every;
                    db.put(numbered_key(space, at), numbered_value(space, at, tag))?;
                }
            }
            ["check", space, from, to, tag] => {
                return self.check(number(space)?, number(from)?..number(to)?, tag);
            }
            ["status"] => return Ok(self.status()),
            ["digest"] => return Ok(format!("digest={:032x}", db.digest()?)),
            ["rows"] => return self.rows(),
            ["peer", address] => db.add_peer(address)?,
            ["pause"] => db.pause()?,
            ["resume"] => db.resume()?,
            ["sync", seconds] => db.sync_now(Duration::from_secs(number(seconds)?))?,
            ["meet", seconds] => {
                let began = Instant::now();
                db.resume()?;
                db.sync_now(Duration::from_secs(number(seconds)?))?;
                return Ok(format!("micros={}", began.elapsed().as_micros()));
            }
            ["join", address] => self.join(address)?,
            ["backup", directory] => {
                let report = db.backup(directory)?;
                return Ok(format!("rows={} bytes={}", report.rows, report.bytes));
            }
            ["author", name, count] => {
                let name = name.chars().next().ok_or("an author has a name")?;
                let (db, count) = (db.clone(), number(count)?);
                let writes = Arc::clone(&self.writes);
                let write = move || author(&db, name, count, &writes).map_err(|e| e.to_string());
                self.author = Some(std::thread::spawn(write));
            }
            ["written"] => {
                let author = self.author.take().ok_or("nobody writes")?;
                let writes = author.join().map_err(|_| "the author panicked")??;
                let told = writes.iter().map(|(key, (number, is_put))| {
                    format!("{key}={}{number}", if *is_put { '+' } else { '-' })
                });
                return Ok(told.collect::<Vec<_>>().join(" "));
            }
            ["survey"] => return self.survey(),
            ["close"] => db.close()?,
            _ => return Err("no such command".into()),
        }
        Ok(String::new())
    }

    fn in_batches(
        &self,
        numbers: std::ops::Range<u64>,
        mut add: impl FnMut(&mut level_replicator::Batch<'_>, u64),
    ) -> Result<()> {
        for from in numbers.clone().step_by(BATCH as usize) {
            let mut batch = self.db.batch();
            (from..numbers.end.min(from + BATCH)).for_each(|at| add(&mut batch, at));
            batch.commit()?;
        }
        Ok(())
    }

    /// Counts the keys that do not hold exactly what they should.
    fn check(&self, space: u64, numbers: std::ops::Range<u64>, tag: &str) -> Result<String> {
        let tag: Option<u64> = match tag {
            "none" => None,
            tag => Some(number(tag)?),
        };
        let mut wrong = 0;
        for at in numbers {
            let siblings = self.db.siblings(numbered_key(space, at))?;
            let is_right = match (tag, &siblings[..]) {
                (None, []) => true,
                (Some(tag), [one]) => one.value == numbered_value(space, at, tag)[..],
                _ => false,
            };
            wrong += u64::from(!is_right);
        }
        Ok(format!("wrong={wrong}"))
    }

    fn status(&self) -> String {
        let status = self.db.status();
        let known = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
        let digest = status
            .digest
            .map_or("?".to_owned(), |it| format!("{it:032x}"));
        let below_floor = status.clock.count_missing_in(&status.reclaim.floor) == 0;
        let settled = status.sync_state == SyncState::Settled;
        format!(
            "replica={:?} keys={} conflicts={} deletes={} log={} digest={digest} clock={:032x} \
             below_floor={} settled={} epoch={} open={} reclaiming={} links={} conversations={} \
             sent={} received={} sent_records={} received_records={} disk={} journal={} \
             renames={} members={} promotions={}",
            status.replica,
            known(status.keys),
            known(status.conflicts),
            known(status.deletes),
            known(status.log_entries),
            status.clock.digest(),
            u8::from(below_floor),
            u8::from(settled),
            status.reclaim.epoch,
            u8::from(status.reclaim.epoch_open),
            u8::from(status.reclaim.reclaiming),
            status.links,
            status.traffic.conversations,
            status.traffic.sent_bytes,
            status.traffic.received_bytes,
            status.traffic.sent_records,
            status.traffic.received_records,
            known(status.storage.disk_bytes),
            known(status.storage.journal_bytes),
            self.renames.load(Ordering::Relaxed),
            self.db
                .members()
                .iter()
                .filter(|member| !member.retired)
                .count(),
            status.promotions,
        )
    }

    /// What the tables hold, as the engine is given it.
    fn rows(&self) -> Result<String> {
        let snapshot = self.storage.snapshot();
        // The descriptors of the writers, by which records are read.
        let described = MemoryStorage::default();
        let mut batch = Batch::default();
        for table in [Table::Meta, Table::Writers] {
            for entry in snapshot.range(table, Bound::Unbounded, Bound::Unbounded) {
                let (key, value) = entry?;
                batch.put(table, key, value);
            }
        }
        described.commit(batch)?;
        let state = State::open(Arc::new(described), [0; 16])?;

        let (mut vectors, mut payload) = (0, 0);
        let mut told = String::new();
        for table in Table::ALL {
            let (mut rows, mut bytes) = (0, 0);
            for entry in snapshot.range(table, Bound::Unbounded, Bound::Unbounded) {
                let (key, value) = entry?;
                rows += 1;
                // The number of the table stands before each key.
                bytes += 1 + key.len() + value.len();
                if table == Table::Data {
                    let record = read_record(Some(value), &key, state.writers())?;
                    vectors += record.seen.iter().count();
                    let values: usize = (record.puts().filter_map(|put| put.value()))
                        .map(|value| key.len() + value.len())
                        .sum();
                    payload += values;
                }
            }
            let name = format!("{table:?}").to_lowercase();
            told += &format!("{name}={rows} {name}_bytes={bytes} ");
        }
        Ok(format!("{told}vectors={vectors} payload={payload}"))
    }

    /// Gets everything from a peer, and tells all the while how much has come.
    fn join(&self, address: &str) -> Result<()> {
        self.db.add_peer(address)?;
        let db = self.db.clone();
        let joining = std::thread::spawn(move || db.sync_now(Duration::from_secs(600)));
        while !joining.is_finished() {
            let traffic = self.db.status().traffic;
            let memory = high_water("self")?;
            println!(
                "came {} {} {memory}",
                traffic.received_bytes, traffic.received_records
            );
            std::thread::sleep(TELL_INTERVAL);
        }
        joining
            .join()
            .map_err(|_| "the waiting thread panicked")??;
        // Both know the same; the last claim may still be on its way.
        while self.db.status().sync_state != SyncState::Settled {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The concurrent values of every key that authors write to.
    fn survey(&self) -> Result<String> {
        let mut told = Vec::new();
        for entry in self.db.prefix("by/") {
            let (key, _) = entry?;
            let siblings = self.db.siblings(&key)?;
            let values = siblings
                .iter()
                .map(|one| String::from_utf8_lossy(&one.value));
            let values: Vec<_> = values.collect();
            told.push(format!(
                "{}={}",
                String::from_utf8_lossy(&key),
                values.join("|")
            ));
        }
        Ok(told.join(" "))
    }
}

/// Writes keys of its own, deletes some of them, and writes keys that others write too. Every value
/// names the last write of each author that it knows of, its own last.
fn author(db: &Db, name: char, count: u64, writes: &Mutex<Writes>) -> Result<Writes> {
    let writes = &mut *writes.lock().unwrap_or_else(PoisonError::into_inner);
    let first = writes.values().map(|(number, _)| number + 1).max();
    let first = first.unwrap_or(1);
    let mut chance = fastrand::Rng::with_seed(first ^ u64::from(name));
    for number in first..first + count {
        let some = chance.u64(..200);
        let (key, is_put) = match chance.u32(..4) {
            0 => (format!("by/all/{some}"), true),
            kind => (format!("by/{name}/{some}"), kind > 1),
        };
        db.update(&key, |_| {
            let known = db.siblings(&key).unwrap_or_default();
            let mut names = Names::new();
            for value in &known {
                join_names(
                    &mut names,
                    &parse_names(&String::from_utf8_lossy(&value.value)),
                );
            }
            names.insert(name, number);
            is_put.then(|| {
                let names = names.iter().map(|(name, number)| format!("{name}{number}"));
                names.collect::<Vec<_>>().join(",")
            })
        })?;
        writes.insert(key, (number, is_put));
        if number % 64 == 0 {
            // So that the others' writes fall between.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(writes.clone())
}

/// The names that a value holds.
pub(crate) fn parse_names(value: &str) -> Names {
    let words = value.split(',').filter_map(|word| {
        let name = word.chars().next()?;
        Some((name, word[name.len_utf8()..].parse().ok()?))
    });
    words.collect()
}

/// Makes names know what others know.
pub(crate) fn join_names(names: &mut Names, others: &Names) {
    for (name, number) in others {
        let known = names.entry(*name).or_insert(0);
        *known = (*known).max(*number);
    }
}

//! `bench`: how fast this machine is, in a few seconds.
//!
//! For figures beside those of others there is the project's own bench program.

use std::io::Write;
use std::time::{Duration, Instant};

use level_replicator::{Db, Options, Secret};

use super::Failure;
use crate::args::BenchArgs;
use crate::output::count;

const VALUE_BYTES: usize = 100;
const BATCH: usize = 100;
const RUNS: usize = 3;

/// How long the second replica may take to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let keys = args.keys;
    writeln!(
        out,
        "{} keys of 16 bytes with values of {VALUE_BYTES} bytes; medians of {RUNS} runs, in operations a second",
        count(keys)
    )?;
    let mut rates: [Vec<f64>; 5] = Default::default();
    for _ in 0..RUNS {
        for (rates, rate) in rates.iter_mut().zip(measure(keys)?) {
            rates.push(rate);
        }
    }
    let names = ["put", "put, batches of 100", "get", "range", "catch-up"];
    for (name, rates) in names.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        writeln!(
            out,
            "{name:<20} {:>12}",
            count(rates[rates.len() / 2] as u64)
        )?;
    }
    Ok(())
}

/// Operations a second: put, put in batches, get, range, catch-up.
fn measure(keys: u64) -> Result<[f64; 5], Failure> {
    let directory = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let options = || Options::new().secret(secret.clone()).listen("127.0.0.1:0");
    let one = options().open(directory.path().join("one"))?;
    let value = noise(1, VALUE_BYTES);
    let puts = timed(keys, || {
        (0..keys).try_for_each(|number| one.put(key(number), &value).map(drop))
    })?;
    let batches = timed(keys, || put_in_batches(&one, keys, &value))?;
    let gets = timed(keys, || {
        (0..keys).try_for_each(|number| one.get(key(number)).map(drop))
    })?;
    let ranges = timed(keys, || one.iter().try_for_each(|entry| entry.map(drop)))?;

    let address = one
        .status()
        .listen
        .ok_or("the first replica does not listen")?;
    let two = options()
        .peer(address.as_str())
        .open(directory.path().join("two"))?;
    let catch_up = timed(keys, || two.sync_now(CATCH_UP_TIMEOUT))?;
    let equal = one.digest()? == two.digest()?;
    one.close()?;
    two.close()?;
    if !equal {
        return Err("the two replicas differ after the catch-up: please report this".into());
    }
    Ok([puts, batches, gets, ranges, catch_up])
}

fn put_in_batches(db: &Db, keys: u64, value: &[u8]) -> Result<(), level_replicator::Error> {
    let numbers: Vec<u64> = (0..keys).collect();
    for numbers in numbers.chunks(BATCH) {
        let mut batch = db.batch();
        for number in numbers {
            batch.put(key(*number), value);
        }
        batch.commit()?;
    }
    Ok(())
}

fn timed(
    operations: u64,
    run: impl FnOnce() -> Result<(), level_replicator::Error>,
) -> Result<f64, Failure> {
    let start = Instant::now();
    run()?;
    Ok(operations as f64 / start.elapsed().as_secs_f64())
}

/// Keys in an order that looks like chance.
fn key(number: u64) -> [u8; 16] {
    let mut key = [b'k'; 16];
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    key[8..].copy_from_slice(&mixed.to_be_bytes());
    key
}

/// Bytes that no compression makes smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(byte).collect()
}

//! Measures level-replicator beside its engine, or beside a bare socket, in one run on the same data.
//!
//! The rule: a figure is the median of several runs with the range beside it, and what carries over
//! to another machine is the ratio. Nothing here fails because something was slow.

mod at_rest;
mod bare;
mod catch_up;
mod counter;
mod cut;
mod idle;
mod latency;
mod local_put;
mod obey;
mod other_process;
mod processes;
mod proofs;
mod redis;
mod report;
mod while_joining;
mod workload;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::other_process::Role;
use crate::proofs::{Findings, copies, deletes, joins};
use crate::report::Report;

type Failure = Box<dyn Error>;
type Result<T, E = Failure> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(about, version)]
struct Args {
    /// What to measure.
    #[arg(value_enum, default_value_t = Measure::All)]
    measure: Measure,

    /// Keys of 16 bytes, each with a value of 100 bytes.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,

    /// Runs of each measure.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,

    /// How long idle replicas are watched, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// How long a joining replica lives until it is killed, in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    life: u64,

    /// How much longer each life is than the one before, in percent.
    #[arg(long, default_value_t = 0)]
    growth: u32,

    /// Also writes the report to this file.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Plays the other process of a measure; the bench starts itself like this.
    #[arg(long, hide = true)]
    role: Option<Role>,

    /// The data directory of the other process.
    #[arg(long, hide = true, requires = "role")]
    directory: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Local put, one thread.
    P1,
    /// An empty replica catches up.
    P5,
    /// From put on one replica to visible on another.
    P6,
    /// Two replicas meet again after a cut.
    P9,
    /// Two replicas have nothing to say.
    P10,
    /// What is on disk at rest.
    P12,
    /// The Redis protocol, beside Redis.
    P13,
    /// Local put while everything streams in.
    P17,
    /// All of these.
    All,
    /// Proves that what was deleted stays deleted, whoever comes back.
    Deletes,
    /// Proves that copies of a replica are no danger.
    Copies,
    /// Proves that an empty replica joins though it is killed all the time.
    Joins,
    /// All of these proofs.
    Proofs,
}

/// What stands above the table in a file.
const HEADING: &str = "# Benchmarks\n\nWritten by the bench program, not by hand.\n\n";

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(role) = args.role {
        other_process::play(role, args.directory.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }

    let measure = args
        .measure
        .to_possible_value()
        .ok_or("every measure has a name")?;
    let command = format!(
        "{} --keys {} --runs {} --seconds {}",
        measure.get_name(),
        args.keys,
        args.runs,
        args.seconds
    );
    let is_proof = matches!(
        args.measure,
        Measure::Deletes | Measure::Copies | Measure::Joins | Measure::Proofs
    );
    if is_proof {
        return prove(&args);
    }
    let wanted = |measure| [measure, Measure::All].contains(&args.measure);
    let (keys, runs) = (args.keys, args.runs);
    let mut report = Report::new(command);
    if wanted(Measure::P1) {
        local_put::measure(keys, runs, &mut report)?;
    }
    if wanted(Measure::P5) {
        catch_up::measure(keys, runs, &mut report)?;
    }
    if wanted(Measure::P6) {
        latency::measure(runs, &mut report)?;
    }
    if wanted(Measure::P9) {
        cut::measure(keys, runs, &mut report)?;
    }
    if wanted(Measure::P10) {
        idle::measure(keys, args.seconds, 1, &mut report)?;
    }
    if wanted(Measure::P12) {
        at_rest::measure(keys, &mut report)?;
    }
    if args.measure == Measure::P13 || args.measure == Measure::All && redis::is_possible() {
        redis::measure(keys, runs, &mut report)?;
    }
    if wanted(Measure::P17) {
        while_joining::measure(keys, runs, &mut report)?;
    }

    print!("{report}");
    if let Some(file) = args.markdown {
        std::fs::write(file, format!("{HEADING}{report}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn prove(args: &Args) -> Result<ExitCode> {
    let wanted = |proof| [proof, Measure::Proofs].contains(&args.measure);
    let keys = u64::from(args.keys);
    let mut findings = Findings::default();
    if wanted(Measure::Deletes) {
        deletes::prove(keys, &mut findings)?;
    }
    if wanted(Measure::Copies) {
        copies::prove((keys / 20).max(100), &mut findings)?;
    }
    if wanted(Measure::Joins) {
        joins::prove(keys, args.life, args.growth, &mut findings)?;
    }

    print!("{findings}");
    for wrong in findings.wrong() {
        println!("WRONG: {wrong}");
    }
    if let Some(file) = &args.markdown {
        std::fs::write(file, format!("{HEADING}{findings}"))?;
    }
    Ok(match findings.wrong() {
        [] => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

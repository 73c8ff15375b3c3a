//! Measures level-replicator beside its engine, or beside a bare socket, in one run on the same data.
//!
//! The rule: a figure is the median of several runs with the range beside it, and what carries over
//! to another machine is the ratio. Nothing here fails because something was slow.

mod bare;
mod catch_up;
mod latency;
mod local_put;
mod other_process;
mod report;
mod workload;

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::other_process::Role;
use crate::report::Report;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

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
    /// All of them.
    All,
}

/// What stands above the table in a file.
const HEADING: &str = "# Benchmarks\n\nWritten by the bench program, not by hand.\n\n";

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(role) = args.role {
        return other_process::play(role, args.directory.as_deref());
    }

    let wanted = |measure| [measure, Measure::All].contains(&args.measure);
    let measure = args
        .measure
        .to_possible_value()
        .ok_or("every measure has a name")?;
    let (name, keys, runs) = (measure.get_name(), args.keys, args.runs);
    let mut report = Report::new(format!("{name} --keys {keys} --runs {runs}"));
    if wanted(Measure::P1) {
        local_put::measure(keys, runs, &mut report)?;
    }
    if wanted(Measure::P5) {
        catch_up::measure(keys, runs, &mut report)?;
    }
    if wanted(Measure::P6) {
        latency::measure(runs, &mut report)?;
    }

    print!("{report}");
    if let Some(file) = args.markdown {
        std::fs::write(file, format!("{HEADING}{report}"))?;
    }
    Ok(())
}

//! Fuzzes everything that reads a peer's bytes or the disk. A finding ends the run with exit code 1
//! and is kept in the corpus, which every run of the tests replays.

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use level_replicator_fuzz::campaign::{Campaign, Finding, shrink};
use level_replicator_fuzz::target::Target;
use level_replicator_fuzz::{TARGETS, corpus};

const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Feeds level-replicator bytes that nobody meant.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only this target; can be given several times
    #[arg(long, value_name = "NAME", value_parser = TARGETS.map(|target| target.name))]
    target: Vec<String>,
    /// How long to run each target
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u64,
    /// Repeat the run that had this seed; without it, any seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print how often each outcome came
    #[arg(long)]
    outcomes: bool,
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(any_seed);
    let is_chosen = |target: &&Target| {
        arguments.target.is_empty() || arguments.target.iter().any(|name| name == target.name)
    };
    let mut exit = ExitCode::SUCCESS;
    for target in TARGETS.iter().filter(is_chosen) {
        if !run_target(*target, seed, &arguments)? {
            exit = ExitCode::FAILURE;
        }
    }
    Ok(exit)
}

/// The seed need not be secret, only another one each time.
fn any_seed() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(0, |since| since.as_micros() as u64)
}

/// Runs one target; answers whether all is well.
fn run_target(target: Target, seed: u64, arguments: &Arguments) -> io::Result<bool> {
    let Target { name, body, .. } = target;
    println!("{name}: seed {seed}");
    let kept = corpus::load(name)?.into_iter().map(|(_, input)| input);
    let mut campaign = Campaign::new(target, kept.collect(), seed);
    let began = Instant::now();
    if let Err(finding) = run_for(&mut campaign, name, began, arguments.seconds) {
        eprintln!("{name}: found something after {}", campaign.depth());
        tell(name, &shrink(body, finding), seed)?;
        return Ok(false);
    }

    let depth = campaign.depth();
    let per_second = depth.executions as f64 / began.elapsed().as_secs_f64();
    println!("{name}: {depth}, {per_second:.0} a second, nothing found");
    if arguments.outcomes {
        for (outcome, count) in campaign.outcomes() {
            println!("{count:>12}  {outcome}");
        }
    }
    match campaign.shallowness() {
        None => Ok(true),
        Some(reason) => {
            eprintln!("{reason}: its seeds or its body do not reach what they are to test");
            Ok(false)
        }
    }
}

fn run_for(
    campaign: &mut Campaign,
    name: &str,
    began: Instant,
    seconds: u64,
) -> Result<(), Finding> {
    campaign.run_pool()?;
    let mut told = began;
    while began.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..32 {
            campaign.step()?;
        }
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            println!(
                "{name}: {} s, {}",
                began.elapsed().as_secs(),
                campaign.depth()
            );
        }
    }
    Ok(())
}

fn tell(name: &str, finding: &Finding, seed: u64) -> io::Result<()> {
    let path = corpus::keep(name, &finding.input)?;
    eprintln!("{name}: {}", finding.text);
    eprintln!(
        "kept in {}: {}",
        path.display(),
        finding.input.escape_ascii()
    );
    eprintln!(
        "to see it again: cargo test -p level-replicator-fuzz (or --target {name} --seed {seed})"
    );
    eprintln!(
        "then mend what is broken, give the file a name that tells what it found, and commit both"
    );
    Ok(())
}

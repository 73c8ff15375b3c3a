//! The command of the simulator: many seeds, or the story of one.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use level_replicator_core::mistake::{Mistake, plant};
use level_replicator_sim::catch::catch;
use level_replicator_sim::growth::Load;
use level_replicator_sim::growth::report::{Curve, page, plot};
use level_replicator_sim::minimize::minimize;
use level_replicator_sim::plan::{PROFILES, Plan, Profile, profile};
use level_replicator_sim::run::run;
use level_replicator_sim::script;
use level_replicator_sim::sweep::{Failed, Report, Sweep};
use level_replicator_sim::trace::Seconds;

/// Runs spent on making a failing schedule smaller.
const MINIMIZE_RUNS: usize = 1_500;

/// Most lines of a story that are shown for a failure.
const STORY_LINES: usize = 60;

/// Runs whole clusters in one thread each, from seeds, with failing networks, disks and clocks, and
/// checks after every step that each replica holds exactly what it must.
#[derive(Parser)]
#[command(name = "level-replicator-sim", version)]
struct Args {
    /// Seeds to run: the first, and the first that is not run.
    #[arg(long, value_parser = parse_seeds, default_value = "0..1000", value_name = "A..B")]
    seeds: Range<u64>,
    /// Kind of runs: see --list. `all` runs every kind.
    #[arg(long, default_value = "standard", value_name = "NAME")]
    config: String,
    /// Replicas at the beginning of each run, instead of what chance says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    replicas: Option<u16>,
    /// Goes on with further seeds until so many minutes have passed.
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u16).range(1..))]
    minutes: Option<u16>,
    /// Threads. Default: one for each processor.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Runs every seed twice and compares, instead of one in ten.
    #[arg(long)]
    twice: bool,
    /// Runs one seed.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "minutes", "twice", "jobs"])]
    replay: Option<u64>,
    /// Tells the story of the replayed seed.
    #[arg(long, requires = "replay")]
    trace: bool,
    /// Leaves out of the replayed schedule all that its failure does not need.
    #[arg(long, requires = "replay")]
    minimize: bool,
    /// Lists the kinds of runs.
    #[arg(long)]
    list: bool,
    /// Plays a scenario and prints its story.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Measures how rounds and bytes grow with the number of replicas, and writes growth.md and
    /// growth.svg there.
    #[arg(long, value_name = "DIRECTORY")]
    growth: Option<PathBuf>,
    /// Makes the core wrong in every way that it can be, and prints how many seeds it takes to notice.
    #[arg(long)]
    mistakes: bool,
    /// Makes the core wrong on purpose.
    #[arg(long, value_parser = parse_mistake, hide = true)]
    mistake: Option<Mistake>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for profile in PROFILES {
            println!("{:10} {}", profile.name, profile.about);
        }
        return ExitCode::SUCCESS;
    }
    let profiles: Vec<&'static Profile> = match args.config.as_str() {
        "all" => PROFILES.iter().collect(),
        name => profile(name).into_iter().collect(),
    };
    if profiles.is_empty() {
        eprintln!("no configuration '{}': --list names them", args.config);
        return ExitCode::from(2);
    }
    // What a replica panics with is told with its run.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(path) = &args.scenario {
        plant(args.mistake);
        return scenario(path);
    }
    if let Some(directory) = &args.growth {
        return growth(directory);
    }
    if args.mistakes {
        return table_of_mistakes(args.seeds.end);
    }
    if let Some(seed) = args.replay {
        let [profile] = profiles[..] else {
            eprintln!("a seed means another run in each configuration: name one with --config");
            return ExitCode::from(2);
        };
        return replay(&args, profile, seed);
    }
    let sound = profiles.iter().all(|profile| sweep(&args, profile));
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the seeds of one kind; answers whether all is well.
fn sweep(args: &Args, profile: &'static Profile) -> bool {
    let mut seeds = args.seeds.clone();
    let time_max = args
        .minutes
        .map(|minutes| Duration::from_secs(u64::from(minutes) * 60));
    if time_max.is_some() {
        seeds.end = u64::MAX;
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let sweep = Sweep {
        profile,
        seeds,
        replicas: args.replicas.map(usize::from),
        time_max,
        jobs: args.jobs.map_or(processors, usize::from),
        twice_every: if args.twice { 1 } else { 10 },
        mistake: args.mistake,
        stops_at_first: false,
    };
    let told = Mutex::new(Instant::now());
    let report = sweep.run(|report| {
        if let Ok(mut told) = told.try_lock()
            && told.elapsed() >= Duration::from_secs(2)
        {
            *told = Instant::now();
            eprintln!("{}", summary(profile, report));
        }
    });
    println!("{}", summary(profile, &report));
    for (what, times) in report.counts.iter() {
        println!("  {times:>12}  {what}");
    }
    let missing = report.not_exercised(profile);
    if !missing.is_empty() {
        println!(
            "not exercised, so nothing is shown of it: {}",
            missing.join(", ")
        );
    }
    for failed in &report.failed {
        println!("\n{}", describe(failed));
    }
    if let Some(first) = report.failed.first() {
        explain(args, profile, first);
    }
    report.failed.is_empty() && missing.is_empty()
}

fn summary(profile: &Profile, report: &Report) -> String {
    let per_minute = report.runs as f64 / report.took.as_secs_f64().max(1e-9) * 60.0;
    format!(
        "{}: {} seeds in {:.1} s, {per_minute:.0} a minute, {} run twice and compared, {} failed",
        profile.name,
        report.runs,
        report.took.as_secs_f64(),
        report.compared,
        report.failed.len(),
    )
}

fn describe(failed: &Failed) -> String {
    format!(
        "seed {} breaks {} after {} s: {}",
        failed.seed,
        failed.broken.invariant,
        Seconds(failed.at_us),
        failed.broken.how
    )
}

/// Shows the least that makes a seed fail, and its story.
fn explain(args: &Args, profile: &Profile, failed: &Failed) {
    plant(args.mistake);
    let plan = Plan::new(profile, failed.seed, args.replicas.map(usize::from));
    let smaller = minimize(&plan, &failed.broken, MINIMIZE_RUNS);
    println!(
        "\nthe least of it, {} of {} actions:\n{}",
        smaller.actions.len(),
        plan.actions.len(),
        smaller.settings()
    );
    for (at, action) in &smaller.actions {
        println!("{} {action}", Seconds(*at));
    }
    let outcome = run(&smaller, true);
    println!("\nits story, to the end:");
    let skipped = outcome.lines.len().saturating_sub(STORY_LINES);
    for line in &outcome.lines[skipped..] {
        println!("{line}");
    }
    if let Some((at_us, broken)) = outcome.failure {
        println!(
            "{} breaks {}: {}",
            Seconds(at_us),
            broken.invariant,
            broken.how
        );
    }
    println!(
        "\nagain, in full: --config {} --replay {} --trace",
        profile.name, failed.seed
    );
    plant(None);
}

/// Plays a scenario; fails if its oracle objects.
fn scenario(path: &Path) -> ExitCode {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("cannot read {}: {error}", path.display());
            return ExitCode::from(2);
        }
    };
    let played = script::run(&text);
    println!("{}", played.text);
    for broken in &played.broken {
        eprintln!("{broken}");
    }
    if played.broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Measures growth and writes it down; fails if it costs more than is allowed.
fn growth(directory: &Path) -> ExitCode {
    let mut curves = Vec::new();
    for load in [Load::Quiet, Load::Busy] {
        eprintln!("measuring: {}", load.title());
        match Curve::measure(load) {
            Ok(curve) => curves.push(curve),
            Err(error) => {
                eprintln!("cannot measure: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let text = page(&curves);
    println!("{text}");
    for (name, content) in [("growth.md", text), ("growth.svg", plot(&curves))] {
        let path = directory.join(name);
        if let Err(error) = std::fs::write(&path, content) {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    let excesses: Vec<String> = curves.iter().flat_map(Curve::excesses).collect();
    for excess in &excesses {
        eprintln!("more than is allowed: {excess}");
    }
    if excesses.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints, as a Markdown table, where each mistake is noticed.
fn table_of_mistakes(seeds_max: u64) -> ExitCode {
    let mut missed = 0;
    println!("| mistake | what is done wrong | configuration | seeds | first broken |");
    println!("|---|---|---|---|---|");
    for &mistake in Mistake::ALL {
        let (name, about) = (mistake.name(), mistake.about());
        match catch(mistake, seeds_max) {
            Some(caught) => println!(
                "| {name} | {about} | {} | {} | {} |",
                caught.place, caught.seeds, caught.broken.invariant
            ),
            None => {
                missed += 1;
                println!(
                    "| {name} | {about} | **not noticed** in {seeds_max} seeds of each |  |  |"
                );
            }
        }
    }
    if missed > 0 {
        eprintln!("{missed} mistakes were not noticed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs one seed, and tells of it.
fn replay(args: &Args, profile: &'static Profile, seed: u64) -> ExitCode {
    plant(args.mistake);
    let mut plan = Plan::new(profile, seed, args.replicas.map(usize::from));
    let mut outcome = run(&plan, args.trace);
    if args.minimize
        && let Some((_, broken)) = &outcome.failure
    {
        plan = minimize(&plan, broken, MINIMIZE_RUNS);
        outcome = run(&plan, args.trace);
    }
    println!("seed {seed} of '{}': {}", profile.name, plan.settings());
    for line in &outcome.lines {
        println!("{line}");
    }
    for (what, times) in outcome.counts.iter() {
        println!("  {times:>12}  {what}");
    }
    println!("digest {:032x}", outcome.digest);
    match outcome.failure {
        None => {
            println!("all is well");
            ExitCode::SUCCESS
        }
        Some((at_us, broken)) => {
            println!(
                "{} breaks {}: {}",
                Seconds(at_us),
                broken.invariant,
                broken.how
            );
            ExitCode::FAILURE
        }
    }
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let parts = text.split_once("..");
    let range = parts.and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    range
        .filter(|range: &Range<u64>| !range.is_empty())
        .ok_or_else(|| {
            format!("'{text}' is no range: write the first seed, two dots, and the end, as 0..1000")
        })
}

fn parse_mistake(text: &str) -> Result<Mistake, String> {
    Mistake::by_name(text).ok_or_else(|| {
        let names: Vec<&str> = Mistake::ALL.iter().map(|mistake| mistake.name()).collect();
        format!("no mistake '{text}'; there are {}", names.join(", "))
    })
}

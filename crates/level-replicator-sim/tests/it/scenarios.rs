//! Every scenario says what it said when somebody last read it, and its oracle is content.

use std::fs;
use std::path::{Path, PathBuf};

use std::panic::{AssertUnwindSafe, catch_unwind};

use level_replicator_core::mistake::{Mistake, plant};
use level_replicator_sim::script;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn read(name: &str) -> String {
    let path = directory().join(format!("{name}.txt"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names() -> Vec<String> {
    let files = fs::read_dir(directory()).expect("the directory of scenarios");
    let paths = files.map(|file| file.expect("a file").path());
    let mut names: Vec<String> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// The first lines that differ, with what stands before them.
fn difference(expected: &str, played: &str) -> Option<String> {
    let (expected, played): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), played.lines().collect());
    let longest = expected.len().max(played.len());
    let place = (0..longest).find(|&place| expected.get(place) != played.get(place))?;
    let mut told = String::new();
    for line in &expected[place.saturating_sub(4).min(expected.len())..place.min(expected.len())] {
        told.push_str(&format!("    {line}\n"));
    }
    for (sign, lines) in [("-", &expected), ("+", &played)] {
        for line in lines.iter().skip(place).take(6) {
            told.push_str(&format!("  {sign} {line}\n"));
        }
    }
    Some(format!("line {}:\n{told}", place + 1))
}

/// What is wrong with a scenario; with an update, only what no update may bless.
fn fault(name: &str, updates: bool) -> Option<String> {
    let text = read(name);
    let played = script::run(&text);
    if !played.broken.is_empty() {
        return Some(format!(
            "{name}: {}\n{}",
            played.broken.join("; "),
            played.text
        ));
    }
    if played.commands == 0 {
        return Some(format!("{name} has no command"));
    }
    if updates {
        fs::write(directory().join(format!("{name}.txt")), played.text).expect("it is written");
        return None;
    }
    difference(&text, &played.text).map(|lines| format!("{name}, {lines}"))
}

#[test]
fn scenarios() {
    let updates = std::env::var_os("UPDATE_SCENARIOS").is_some();
    let names = names();
    assert!(!names.is_empty(), "no scenario was found");

    let faults: Vec<String> = names
        .iter()
        .filter_map(|name| fault(name, updates))
        .collect();

    let how = "if this is meant: UPDATE_SCENARIOS=1 cargo test -p level-replicator-sim scenarios";
    assert!(faults.is_empty(), "{}\n{how}", faults.join("\n"));
}

#[test]
fn a_scenario_without_its_output_fails() {
    let text = "# Title\nreplicas R\nR put x 1\n";
    let played = script::play(text);

    assert!(difference(text, &played).is_some());
    assert_eq!(difference(&played, &script::play(&played)), None);
}

#[test]
fn a_command_that_is_not_understood_is_a_fault_and_no_output() {
    assert!(!script::run("replicas R\nR dances\n").broken.is_empty());
}

/// Mistakes that the oracle notices in a scenario, whatever output it expects.
const NOTICED: &[(&str, &[Mistake])] = &[
    (
        "01_overwrite_across_writers",
        &[Mistake::ClockPerWriter, Mistake::ClaimBeforeApply],
    ),
    (
        "02_overwrite_within_one_writer",
        &[Mistake::ClockPerEntry, Mistake::ClockPerWriter],
    ),
    (
        "03_write_during_the_conversation",
        &[Mistake::LiveLog, Mistake::ClaimOfNow],
    ),
    ("04_half_a_transfer_passed_on", &[Mistake::NoHoles]),
    (
        "05_crash_after_each_commit",
        &[Mistake::LogApart, Mistake::ClockApart],
    ),
    ("06_power_loss", &[Mistake::WriterReused]),
    ("07_restored_backups", &[Mistake::WriterReused]),
    ("08_cloned_directory", &[Mistake::WriterReused]),
    ("16_clocks_that_are_off", &[Mistake::StampNotAfter]),
    (
        "17_repeated_and_replayed",
        &[Mistake::ClockPerEntry, Mistake::TombstoneDropped],
    ),
    ("19_resolved_by_both", &[Mistake::SiblingsDropped]),
    (
        "21_history_before_a_stale_sibling",
        &[Mistake::NoHistory, Mistake::NoHoles],
    ),
    ("23_readers_and_a_batch", &[Mistake::BatchInParts]),
    (
        "23_readers_and_a_large_batch",
        &[Mistake::BatchInParts, Mistake::UnclaimedForgotten],
    ),
    ("30_three_founders", &[Mistake::SiblingsDropped]),
    (
        "10d_stale_healed_in_parts",
        &[Mistake::HalfHealedServes, Mistake::HealWithoutClock],
    ),
    ("10a_stale_replica_returns", &[Mistake::NoFloorCheck]),
    (
        "12b_half_healed_and_asked",
        &[
            Mistake::HalfHealedServes,
            Mistake::HealWithoutClock,
            Mistake::WantedForgotten,
            Mistake::WaitingForgotten,
        ],
    ),
    (
        "13a_joiner_before_the_introducer_agreed",
        &[Mistake::EpochWithoutMembers],
    ),
    ("13c_introducer_dies", &[Mistake::AckEarly]),
    ("14_proposer_dies", &[Mistake::AckEarly]),
    (
        "26_delete_above_a_gap",
        &[Mistake::DeleteOverGap, Mistake::WaitingForgotten],
    ),
    (
        "32_reclaimed_beside_a_concurrent_write",
        &[Mistake::FloorNotAdopted],
    ),
    ("33_another_beside_a_heal", &[Mistake::HealBesideOthers]),
    ("34_history_through_a_parent", &[Mistake::CutNotClosed]),
    ("35_lost_and_pulled_back_in_part", &[Mistake::ClosedAgain]),
    (
        "36_promoted_beside_the_stale",
        &[Mistake::ScrubHalfHealed, Mistake::HalfHealedServes],
    ),
    ("37_push_below_the_floor", &[Mistake::PushBelowFloor]),
    ("38_known_by_another_way", &[Mistake::WantedForgotten]),
    (
        "39_both_below_each_others_floor",
        &[Mistake::HealWithoutClock, Mistake::HalfHealedServes],
    ),
    ("40_stripped_later", &[Mistake::WaitingForgotten]),
];

/// Whether the oracle objects to a scenario that is played with a mistake; a panic is an objection.
fn is_noticed(name: &str, mistake: Mistake) -> bool {
    let text = read(name);
    plant(Some(mistake));
    let played = catch_unwind(AssertUnwindSafe(|| script::run(&text)));
    plant(None);
    played.map_or(true, |played| !played.broken.is_empty())
}

#[test]
fn mistakes_are_noticed_by_the_scenarios_that_are_there_for_them() {
    for (name, mistakes) in NOTICED {
        for &mistake in *mistakes {
            assert!(
                is_noticed(name, mistake),
                "{name} does not notice {mistake:?}"
            );
        }
    }
}

/// What the protocol refuses shows as another output only: nothing comes to harm.
#[test]
fn a_replay_that_is_taken_for_the_original_shows_in_its_scenario() {
    let name = "17_repeated_and_replayed";
    for mistake in [Mistake::FramesUnnumbered, Mistake::FramesForAnybody] {
        let text = read(name);
        plant(Some(mistake));
        let played = script::run(&text);
        plant(None);
        assert!(difference(&text, &played.text).is_some(), "{mistake:?}");
    }
}

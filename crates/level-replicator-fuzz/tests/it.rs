//! The corpus and a short run of every target, and proof that the loop finds what is to be found.

use level_replicator_fuzz::campaign::{Campaign, run, shrink};
use level_replicator_fuzz::target::{Outcome, Target};
use level_replicator_fuzz::{TARGETS, corpus};

#[test]
fn nothing_that_was_once_found_comes_back() {
    for target in TARGETS {
        for (path, input) in corpus::load(target.name).expect("the corpus can be read") {
            if let Err(text) = run(target.body, &input) {
                panic!("{}: {text}", path.display());
            }
        }
    }
}

/// As many inputs as take about half a second without optimization.
fn short_run(target: &Target) -> u64 {
    match target.name {
        "session" | "disk" => 1_000,
        _ => 5_000,
    }
}

#[test]
fn a_short_run_of_every_target_finds_nothing_and_gets_deep() {
    for target in TARGETS {
        let mut campaign = Campaign::new(target, Vec::new(), 1);
        let steps = short_run(&target);
        let outcome = campaign
            .run_pool()
            .and_then(|()| (0..steps).try_for_each(|_| campaign.step()));
        if let Err(finding) = outcome {
            let finding = shrink(target.body, finding);
            panic!("{}: {}: {:?}", target.name, finding.text, finding.input);
        }
        assert_eq!(campaign.shallowness(), None, "{}", campaign.depth());
    }
}

/// Breaks on a length that lies, behind a magic, before a letter: three changes of its only seed.
fn planted(input: &[u8]) -> Outcome {
    let [b'L', version, length, rest @ ..] = input else {
        return Outcome::refused("no magic");
    };
    if *version != 2 {
        return Outcome::refused("another version");
    }
    if usize::from(*length) <= rest.len() {
        return Outcome::deep("an honest length");
    }
    assert!(!rest.contains(&b'x'), "the planted bug");
    Outcome::deep("a length that lies")
}

const PLANTED: Target = Target {
    name: "planted",
    body: planted,
    seeds: || vec![b"L\x01\x08abcdefgh".to_vec()],
    remake: None,
    deep_percent_min: 1,
    outcomes_min: 2,
};

#[test]
fn a_bug_three_changes_away_is_found_and_made_small() {
    let mut campaign = Campaign::new(PLANTED, Vec::new(), 1);
    let finding = (0..200_000).find_map(|_| campaign.step().err());
    let finding = shrink(planted, finding.expect("the loop finds it"));

    assert!(
        matches!(finding.input[..], [b'L', 2, _, b'x']),
        "{finding:?}"
    );
    assert!(
        finding.text.ends_with("the planted bug"),
        "{}",
        finding.text
    );
}

#[test]
fn the_same_seed_repeats_a_run() {
    let depths = [3, 3, 4].map(|seed| {
        let mut campaign = Campaign::new(PLANTED, Vec::new(), seed);
        while campaign.step().is_ok() {}
        campaign.depth()
    });
    assert_eq!(depths[0], depths[1]);
    assert_ne!(depths[0], depths[2]);
}

#[test]
fn a_target_that_exercises_nothing_fails() {
    let blind = Target {
        body: |_| Outcome::refused("always"),
        ..PLANTED
    };
    let mut campaign = Campaign::new(blind, Vec::new(), 1);
    (0..2_000).for_each(|_| campaign.step().expect("it breaks nothing"));

    assert!(campaign.shallowness().is_some());
}

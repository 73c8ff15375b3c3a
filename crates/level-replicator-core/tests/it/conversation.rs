//! What replicas tell each other, and what comes of it.

use level_replicator_core::config::Config;

use crate::cluster::Cluster;

#[test]
fn a_write_reaches_everybody() {
    let mut cluster = Cluster::new(3);
    cluster.introduce_all();
    for node in 0..3 {
        cluster.put(node, &format!("key{node}"), "value");
    }
    cluster.settle();

    cluster.assert_equal();
    for node in 0..3 {
        assert_eq!(cluster.get(node, "key0").as_deref(), Some("value"));
    }
}

#[test]
fn a_relay_carries_writes_between_two_that_never_meet() {
    let mut cluster = Cluster::new(3);
    cluster.cut(0, 2);
    cluster.introduce(0, 1);
    cluster.introduce(1, 2);
    cluster.put(0, "from", "a");
    cluster.put(2, "to", "c");
    cluster.settle();

    cluster.assert_equal();
    assert_eq!(cluster.get(2, "from").as_deref(), Some("a"));
    assert_eq!(cluster.get(0, "to").as_deref(), Some("c"));
}

#[test]
fn concurrent_writes_are_both_kept_everywhere_until_somebody_writes_again() {
    let mut cluster = Cluster::new(3);
    cluster.introduce_all();
    cluster.put(0, "key", "first");
    cluster.settle();
    cluster.cut(0, 1);
    cluster.cut(0, 2);
    cluster.cut(1, 2);
    cluster.put(0, "key", "zero");
    cluster.put(1, "key", "one");
    cluster.delete(2, "key");
    cluster.heal();
    cluster.run_for_ms(6_000);

    cluster.assert_equal();
    for node in 0..3 {
        assert_eq!(cluster.siblings(node, "key"), ["one", "zero"]);
        assert_eq!(cluster.get(node, "key").as_deref(), Some("one"));
    }

    cluster.put(2, "key", "settled");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.siblings(0, "key"), ["settled"]);
}

#[test]
fn a_conversation_cut_anywhere_resumes_with_another_peer() {
    for cut in 0..60 {
        let mut cluster = Cluster::new(3);
        for index in 0..40 {
            cluster.put(0, &format!("a{index:02}"), "x");
        }
        cluster.introduce(1, 0);
        cluster.cut(1, 2);
        cluster.settle();
        for index in 0..20 {
            cluster.put(1, &format!("a{index:02}"), "y");
            cluster.put(1, &format!("b{index:02}"), "z");
        }
        cluster.heal();
        cluster.cut(0, 1);
        cluster.introduce(2, 0);
        cluster.break_after = Some(cut);
        cluster.run_for_ms(30);
        cluster.introduce(2, 1);
        cluster.run_for_ms(3_000);
        cluster.assert_equal();
    }
}

#[test]
fn a_conversation_cut_at_every_frame_boundary_resumes_with_another_peer() {
    let config = Config {
        atomic_budget: 1_000,
        ..Config::default()
    };
    for cut in 0.. {
        let mut cluster = Cluster::with_config(3, config.clone());
        cluster.by_frame = true;
        for index in 0..1_500 {
            cluster.put(
                0,
                &format!("{index:04}"),
                "a value that is as long as this one is",
            );
        }
        cluster.put(0, "in fragments", &"0123456789abcdef".repeat(40_000));
        cluster.introduce(1, 0);
        cluster.settle();
        cluster.put(2, "0007", "both ways");
        // Replica 2 is cut off from 0 in the middle, and gets the rest from 1.
        cluster.introduce(2, 0);
        cluster.break_after = Some(cut);
        cluster.run_for_ms(50);
        let is_over = cluster.break_after.is_some();
        cluster.cut(2, 0);
        cluster.introduce(2, 1);
        cluster.run_for_ms(1_000);
        cluster.assert_equal();
        if is_over {
            assert!(cut > 12, "only {cut} frames were said");
            return;
        }
    }
}

#[test]
fn a_replica_that_was_killed_goes_on_where_it_was() {
    let mut cluster = Cluster::new(2);
    cluster.introduce_all();
    cluster.put(0, "key", "one");
    cluster.settle();
    cluster.restart(0);
    cluster.put(0, "key", "two");
    cluster.put(0, "other", "three");
    cluster.introduce_all();
    cluster.run_for_ms(3_000);

    cluster.assert_equal();
    assert_eq!(cluster.siblings(1, "key"), ["two"]);
}

#[test]
fn a_megabyte_value_and_many_keys_fill_an_empty_replica() {
    let mut cluster = Cluster::new(2);
    let large = "v".repeat(3_000_000);
    cluster.put(0, "large", &large);
    for index in 0..5_000 {
        cluster.put(
            0,
            &format!("{:08x}", index * 2_654_435_761_u64 % 1_000_003),
            "value of some length",
        );
    }
    cluster.introduce(1, 0);
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(
        cluster.get(1, "large").map(|value| value.len()),
        Some(3_000_000)
    );
}

#[test]
fn of_two_writes_with_one_stamp_the_greater_dot_wins_everywhere() {
    for seed in 0..8 {
        let mut cluster = Cluster::new(2);
        cluster.seed = seed * 10;
        for node in 0..2 {
            cluster.restart(node);
        }
        // The second write comes a microsecond later, by a clock that is a microsecond slow.
        cluster.wall_off_us.insert(1, -1);
        let dots = [cluster.put(0, "key", "0"), cluster.put(1, "key", "1")];
        cluster.introduce_all();
        cluster.settle();

        cluster.assert_equal();
        let record = cluster.contents(0).into_values().next().expect("one key");
        assert_eq!(record.live[0].stamp, record.live[1].stamp);
        let winner = if dots[0] > dots[1] { "0" } else { "1" };
        for node in 0..2 {
            assert_eq!(cluster.get(node, "key").as_deref(), Some(winner));
        }
    }
}

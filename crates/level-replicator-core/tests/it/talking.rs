//! When replicas talk, to whom, and what it costs.

use std::time::Duration;

use level_replicator_core::address::Address;
use level_replicator_core::config::Config;
use level_replicator_core::event::Event;
use level_replicator_core::replica::{FirstSync, Input, Output};

use crate::cluster::{Cluster, address};

fn synced(cluster: &mut Cluster, node: usize) -> usize {
    let events = cluster.node(node).events.iter();
    events
        .filter(|event| matches!(event, Event::Synced { .. }))
        .count()
}

#[test]
fn a_conversation_without_news_is_one_round_trip_under_300_bytes_each_way() {
    let mut cluster = Cluster::new(2);
    cluster.introduce(0, 1);
    cluster.put(0, "key", "value");
    cluster.put(1, "other", "value");
    cluster.run_for_ms(5_000);
    let before: Vec<(u64, u64)> = (0..2)
        .map(|node| (cluster.node(node).sent_bytes, cluster.node(node).sends))
        .collect();
    let now = cluster.now;
    cluster.node(0).replica.call_everybody(now);
    cluster.run_for_ms(3_000);

    for (node, (bytes, sends)) in before.into_iter().enumerate() {
        let bytes = cluster.node(node).sent_bytes - bytes;
        assert!((1..=300).contains(&bytes), "node {node} sent {bytes} bytes");
        // The hello, and the goodbye of whoever closes.
        assert!(cluster.node(node).sends - sends <= 2, "node {node}");
    }
}

#[test]
fn in_a_full_mesh_a_record_crosses_to_each_replica_about_once() {
    let mut cluster = Cluster::new(5);
    cluster.introduce_all();
    cluster.put(0, "key", "value");
    cluster.run_for_ms(200);
    for node in 0..5 {
        assert_eq!(
            cluster.node(node).replica.sessions().count(),
            4,
            "links of node {node}"
        );
    }
    let sent: u64 = (0..5).map(|node| cluster.node(node).sent_bytes).sum();
    // Nothing that could be compressed.
    let mut state = 1u64;
    let mut any_char = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(33 + (state >> 33) as u8 % 90)
    };
    let value: String = (0..50_000).map(|_| any_char()).collect();

    cluster.put(0, "large", &value);
    cluster.run_for_ms(200);

    cluster.assert_equal();
    let sent = (0..5)
        .map(|node| cluster.node(node).sent_bytes)
        .sum::<u64>()
        - sent;
    let copies = sent as f64 / value.len() as f64;
    assert!(
        (3.9..4.3).contains(&copies),
        "{copies} copies for four replicas"
    );
}

#[test]
fn two_that_dial_each_other_at_once_keep_one_link_and_call_it_no_error() {
    let mut cluster = Cluster::new(2);
    cluster.introduce_all();
    cluster.put(0, "key", "value");
    cluster.run_for_ms(200);
    for node in 0..2 {
        let running = cluster.node(node);
        assert_eq!(
            running.replica.sessions().count(),
            1,
            "links of node {node}"
        );
        let errors = running
            .events
            .iter()
            .filter(|event| matches!(event, Event::Error { .. }));
        assert_eq!(errors.count(), 0, "{:?}", running.events);
    }
    cluster.assert_equal();
}

#[test]
fn an_address_is_learned_through_a_third() {
    let mut cluster = Cluster::new(4);
    cluster.introduce(0, 1);
    cluster.introduce(1, 2);
    cluster.introduce(3, 2);
    cluster.run_for_ms(40_000);
    for node in 0..4 {
        let known: Vec<Address> = cluster
            .node(node)
            .replica
            .peers()
            .iter()
            .map(|(address, _)| address.clone())
            .collect();
        assert_eq!(known.len(), 3, "node {node} knows {known:?}");
    }
}

#[test]
fn a_replica_that_reaches_itself_stops_and_waits_for_nobody() {
    let mut cluster = Cluster::new(1);
    let now = cluster.now;
    let elsewhere: Address = "10.0.0.77:9000".parse().expect("an address");
    cluster.node(0).replica.add_peer(now, elsewhere);
    let sync = cluster.node(0).replica.request_sync(now);
    cluster.node(0).replica.handle_input(now, Input::Timeout);
    let dialed = std::iter::from_fn(|| cluster.node(0).replica.poll_output());
    let link = dialed.into_iter().find_map(|output| match output {
        Output::Connect(link, _) => Some(link),
        _ => None,
    });
    let link = link.expect("it dials");
    // The address leads to the replica itself: what it says on one end it hears on the other.
    let replica = &mut cluster.node(0).replica;
    let accepted = replica.accept(now, address(0)).expect("it listens");
    replica.handle_input(now, Input::Connected(link));
    while let Some(output) = replica.poll_output() {
        match output {
            Output::Send(from, bytes) => {
                let to = if from == link { accepted } else { link };
                replica.handle_input(now, Input::Received(to, bytes));
            }
            Output::Close(from) => {
                let to = if from == link { accepted } else { link };
                replica.handle_input(now, Input::Closed(to, None));
            }
            _ => {}
        }
    }
    assert_eq!(replica.sessions().count(), 0);
    assert_eq!(replica.peers().iter().count(), 0);
    assert_eq!(replica.first_sync(), FirstSync::Settled);
    assert_eq!(replica.sync_result(sync), Some(Vec::new()));
}

#[test]
fn a_request_ends_when_everybody_was_met_and_names_who_was_not() {
    let mut cluster = Cluster::new(4);
    cluster.introduce(0, 1);
    cluster.introduce(0, 2);
    cluster.introduce(0, 3);
    cluster.run_for_ms(100);
    cluster.cut(0, 3);
    cluster.put(1, "key", "value");
    let now = cluster.now;
    let sync = cluster.node(0).replica.request_sync(now);
    cluster.run_for_ms(50);
    let failed = cluster.node(0).replica.sync_result(sync);
    assert_eq!(failed, Some(vec![address(3)]));
    assert_eq!(cluster.get(0, "key").as_deref(), Some("value"));
}

#[test]
fn a_request_in_the_middle_of_a_greeting_ends_soon() {
    for deliveries in 0..8 {
        let mut cluster = Cluster::new(2);
        cluster.put(1, "key", "value");
        cluster.introduce(0, 1);
        cluster.advance_us(1);
        for _ in 0..deliveries {
            if let Some(&end) = cluster.ends_with_mail().first() {
                cluster.deliver_next(end, usize::MAX);
            }
            cluster.advance_us(1);
        }
        let now = cluster.now;
        let sync = cluster.node(0).replica.request_sync(now);
        cluster.run_for_ms(500);
        let result = cluster.node(0).replica.sync_result(sync);
        assert_eq!(result, Some(Vec::new()), "after {deliveries} deliveries");
    }
}

#[test]
fn the_first_write_waits_for_an_exchange_and_no_longer_than_there_is_hope() {
    let mut cluster = Cluster::new(2);
    assert_eq!(
        cluster.node(0).replica.first_sync(),
        FirstSync::Settled,
        "nobody is known"
    );
    cluster.introduce(0, 1);
    assert_eq!(cluster.node(0).replica.first_sync(), FirstSync::Waiting);
    cluster.run_for_ms(50);
    assert_eq!(
        cluster.node(0).replica.first_sync(),
        FirstSync::Settled,
        "an exchange is complete"
    );

    let mut cluster = Cluster::new(2);
    cluster.cut(0, 1);
    cluster.introduce(0, 1);
    cluster.run_for_ms(50);
    assert_eq!(
        cluster.node(0).replica.first_sync(),
        FirstSync::Settled,
        "refused"
    );

    let mut cluster = Cluster::with_config(
        2,
        Config {
            first_sync_timeout: Duration::ZERO,
            ..Config::default()
        },
    );
    cluster.introduce(0, 1);
    assert_eq!(
        cluster.node(0).replica.first_sync(),
        FirstSync::Settled,
        "turned off"
    );
}

#[test]
fn replicated_counts_the_others_that_know_a_write() {
    let mut cluster = Cluster::new(4);
    cluster.introduce_all();
    cluster.put(0, "before", "value");
    cluster.run_for_ms(50);
    cluster.cut(0, 3);
    let dot = cluster.put(0, "key", "value");
    assert_eq!(cluster.node(0).replica.replicated(dot).len(), 0);
    cluster.run_for_ms(5);
    assert_eq!(cluster.node(0).replica.replicated(dot).len(), 2);
}

#[test]
fn conversations_follow_the_writes_and_become_rare_without_them() {
    let mut cluster = Cluster::with_config(
        2,
        Config {
            linger: Duration::ZERO,
            ..Config::default()
        },
    );
    cluster.introduce(0, 1);
    cluster.run_for_ms(1_000);
    let idle = synced(&mut cluster, 0);
    for write in 0..100 {
        cluster.put(0, "key", &write.to_string());
        cluster.run_for_ms(10);
    }
    let busy = synced(&mut cluster, 0) - idle;
    assert!(
        (20..=150).contains(&busy),
        "{busy} conversations in a second of writes"
    );

    cluster.run_for_ms(60_000);
    let before = synced(&mut cluster, 0);
    cluster.run_for_ms(120_000);
    let quiet = synced(&mut cluster, 0) - before;
    assert!(
        (2..=12).contains(&quiet),
        "{quiet} conversations in two quiet minutes"
    );
    cluster.assert_equal();
}

#[test]
fn a_peer_that_is_removed_is_left_and_not_dialed_again() {
    let mut cluster = Cluster::new(2);
    cluster.introduce(0, 1);
    cluster.run_for_ms(50);
    assert_eq!(cluster.node(0).replica.sessions().count(), 1);
    let now = cluster.now;
    cluster.node(0).replica.remove_peer(now, &address(1));
    assert_eq!(cluster.node(0).replica.sessions().count(), 0);
    assert_eq!(cluster.node(0).replica.peers().iter().count(), 0);
}

#[test]
fn a_round_larger_than_the_window_and_smaller_than_the_budget_arrives_without_a_pause() {
    let mut cluster = Cluster::with_config(
        2,
        Config {
            window: 100_000,
            atomic_budget: 10 << 20,
            ..Config::default()
        },
    );
    for key in 0..10 {
        cluster.put(0, &format!("key{key}"), &"v".repeat(50_000));
    }
    cluster.introduce(1, 0);
    cluster.run_for_ms(100);
    cluster.assert_equal();
    assert_eq!(cluster.contents(1).len(), 10);
}

#[test]
fn a_replica_that_has_nothing_to_do_yet_asks_to_be_called_later() {
    let mut cluster = Cluster::with_config(
        3,
        Config {
            linger: Duration::ZERO,
            ..Config::default()
        },
    );
    cluster.introduce(0, 1);
    cluster.introduce(1, 2);
    cluster.put(0, "key", "value");
    // The harness refuses to call one replica again and again at one moment.
    cluster.run_for_ms(1_000);
    cluster.assert_equal();
}

/// A push passes over no write of its own because a sibling beside it is news as well.
#[test]
fn a_push_brings_its_own_write_though_the_peer_lacks_the_sibling_too() {
    for seed in 0..40 {
        let mut cluster = Cluster::with_config(
            3,
            Config {
                window: 1,
                atomic_budget: 0,
                relay_delay: Duration::from_millis(200),
                ..Config::default()
            },
        );
        cluster.seed = seed * 100;
        cluster.introduce_all();
        cluster.put(0, "first", "0");
        cluster.run_for_ms(50);
        cluster.cut(0, 2);
        cluster.cut(1, 2);
        // The same key at 0 and 2, and much else at 0 to keep its push busy.
        cluster.put(2, "key", "two");
        cluster.put(0, "key", "zero");
        for more in 0..4 {
            cluster.put(0, &format!("more{more}"), &format!("{more}").repeat(50_000));
        }
        cluster.heal();
        cluster.introduce_all();
        cluster.run_for_ms(6_000);
        cluster.assert_equal();
        for node in 0..3 {
            assert_eq!(
                cluster.siblings(node, "key"),
                ["two", "zero"],
                "node {node} of {seed}"
            );
        }
    }
}

#[test]
fn a_sync_brings_what_was_written_before_it_though_an_older_clock_is_under_way() {
    let mut cluster = Cluster::new(2);
    cluster.introduce(0, 1);
    cluster.settle();
    let now = cluster.now;
    cluster.node(0).replica.call_everybody(now);
    cluster.run_for_ms(50);
    cluster.put(1, "first", "value");
    cluster.advance_us(1);
    assert!(!cluster.ends_with_mail().is_empty(), "a push is under way");

    cluster.put(1, "second", "value");
    let now = cluster.now;
    let sync = cluster.node(0).replica.request_sync(now);
    // The exchange begins before the old clock arrives.
    cluster.advance_us(1);
    for _ in 0..1_000 {
        if let Some(failed) = cluster.node(0).replica.sync_result(sync) {
            assert_eq!(failed, []);
            assert_eq!(cluster.get(0, "second").as_deref(), Some("value"));
            return;
        }
        match cluster.ends_with_mail().first() {
            Some(&end) => cluster.deliver_next(end, usize::MAX),
            None => cluster.advance_us(100),
        }
    }
    panic!("the sync does not end");
}

#[test]
fn a_large_value_on_a_slow_line_arrives_at_the_first_attempt() {
    let mut cluster = Cluster::new(2);
    let mut state = 1u64;
    let value: String = (0..3_000_000)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from(33 + (state >> 33) as u8 % 90)
        })
        .collect();
    cluster.put(0, "large", &value);
    cluster.introduce(1, 0);
    // Thirty kilobytes in a tenth of a second: ten seconds without an answer would end the link.
    for _ in 0..2_000 {
        for end in cluster.ends_with_mail() {
            cluster.deliver_next(end, 3_000);
        }
        cluster.advance_ms(20);
        if cluster.get(1, "large").is_some() {
            break;
        }
    }
    assert_eq!(
        cluster.get(1, "large").map(|value| value.len()),
        Some(3_000_000)
    );
    assert!(
        cluster.node(0).sent_bytes < 4_000_000,
        "{} bytes",
        cluster.node(0).sent_bytes
    );
    for node in 0..2 {
        let errors = cluster.node(node).events.iter();
        assert_eq!(
            errors
                .filter(|event| matches!(event, Event::Error { .. }))
                .count(),
            0
        );
    }
}

#[test]
fn under_constant_writes_every_peer_of_a_large_cluster_gets_its_turn() {
    let mut cluster = Cluster::new(13);
    for one in 1..13 {
        for other in 1..one {
            cluster.cut(one, other);
        }
        cluster.introduce(0, one);
    }
    for write in 0..1_500 {
        cluster.put(0, "key", &write.to_string());
        cluster.run_for_ms(5);
    }
    for node in 1..13 {
        assert!(
            cluster.get(node, "key").is_some(),
            "node {node} never had its turn"
        );
    }
}

//! Faults of earlier overlay transports that ended sessions, lost data or gave it away, each with the tests that Pilot passes in
//! its place. What was not yet tested elsewhere is tested here.

use std::time::Duration;

use pilot_tests::link::SimLink;
use pilot_tests::netem::{Conditions, PerMille};
use pilot_tests::plan::Plan;
use pilot_tests::world::World;

/// What went wrong elsewhere, and by which tests, in which files, it is seen not to go wrong here.
const WEAKNESSES: [(&str, &[(&str, &str)]); 25] = [
    (
        "a transfer stops for ever when a window update is lost",
        &[
            ("tests/tests/weaknesses.rs", "transfers_survive_lost_window_updates"),
            ("tests/tests/sim_faults.rs", "a_reader_that_naps_is_waited_for"),
        ],
    ),
    (
        "user data is taken for control data",
        &[("pilot-user/engine/tests/messages.rs", "data_that_looks_like_frames_is_data")],
    ),
    (
        "a replayed key exchange moves a peer's endpoint",
        &[
            ("pilot-user/engine/tests/lifecycle.rs", "replays_from_elsewhere_move_no_endpoint"),
            ("tests/tests/adversary/main.rs", "nothing_forged_is_accepted_nothing_twice_and_the_tunnel_lives_on"),
        ],
    ),
    (
        "a replayed or forged packet ends a session",
        &[
            ("pilot-user/engine/tests/lifecycle.rs", "bad_datagrams_are_counted_and_end_nothing"),
            ("tests/tests/adversary/main.rs", "nothing_forged_is_accepted_nothing_twice_and_the_tunnel_lives_on"),
            ("tests/tests/nodes/hostile.rs", "replayed_truncated_and_corrupted_datagrams_end_no_tunnel"),
        ],
    ),
    (
        "an acceptance that nobody asked for is believed",
        &[("pilot-user/engine/src/endpoint/tests.rs", "violations_close_the_tunnel_with_their_code")],
    ),
    (
        "plaintext is accepted inside an encrypted session",
        &[("tests/tests/adversary/main.rs", "nothing_forged_is_accepted_nothing_twice_and_the_tunnel_lives_on")],
    ),
    (
        "a private node takes streams from anyone who knows its address",
        &[
            ("pilot-user/engine/tests/lifecycle.rs", "strangers_get_no_answer"),
            ("tests/tests/nodes/strangers.rs", "who_is_not_known_gets_no_answer_and_disturbs_nobody"),
        ],
    ),
    (
        "both ends acknowledge each other's acknowledgements for ever",
        &[("tests/tests/sim_faults.rs", "nothing_goes_wrong"), ("tests/tests/sim_seeds.rs", "everything_at_once")],
    ),
    (
        "the end of a stream overtakes its data, and the tail is lost",
        &[
            ("tests/tests/sim_faults.rs", "what_is_reordered_is_put_in_order"),
            ("pilot-user/engine/tests/streams.rs", "halves_close_in_any_order"),
        ],
    ),
    (
        "a slow reader blocks other connections",
        &[("pilot-user/engine/tests/transport.rs", "a_reader_that_stops_delays_nobody_else")],
    ),
    (
        "a peer that ignores the window freezes the node",
        &[
            ("pilot-user/engine/src/endpoint/tests.rs", "connection_credit_holds_over_streams"),
            ("pilot-user/engine/src/endpoint/tests.rs", "violations_close_the_tunnel_with_their_code"),
        ],
    ),
    (
        "one key for both directions, and for the life of the process",
        &[
            ("pilot-user/engine/src/crypto/handshake.rs", "both_ends_get_the_same_keys"),
            ("pilot-user/engine/tests/lifecycle.rs", "a_second_handshake_continues_the_tunnel"),
            ("tests/tests/sim_rekey.rs", "every_100_ms_for_a_minute_under_full_load"),
        ],
    ),
    (
        "a repeated key exchange uses a nonce again",
        &[
            ("pilot-user/engine/tests/rekey.rs", "replays_of_old_messages_change_nothing"),
            ("tests/src/world/wire.rs", "a_number_used_twice_is_seen"),
            ("tests/tests/sim_rekey.rs", "through_loss_reordering_and_duplication"),
        ],
    ),
    (
        "each packet costs a search among all connections, and a system call",
        &[
            ("pilot-user/tests/api/many.rs", "ten_thousand_connections_and_one_that_does_not_read"),
            ("pilot-user/tests/links/udp.rs", "gso_and_gro_keep_datagrams_apart_and_limits_hold"),
            ("pilot-user/xsk/tests/memory/sending.rs", "tx_is_kicked_only_when_the_kernel_asks"),
        ],
    ),
    (
        "one thread serves all peers",
        &[
            ("tests/tests/queues/workers.rs", "two_queues_are_served_by_two_workers"),
            ("tests/tests/queues/workers.rs", "lanes_have_a_worker_and_a_queue_each"),
            ("pilot-user/engine/tests/lanes.rs", "two_lanes_carry_bulk_side_by_side"),
        ],
    ),
    (
        "large packets are black-holed, so that small messages work and files hang",
        &[
            ("pilot-user/engine/tests/transport.rs", "datagrams_grow_only_as_far_as_the_path_carries"),
            ("pilot-user/engine/tests/transport.rs", "bulk_goes_on_when_the_path_becomes_narrower"),
        ],
    ),
    (
        "a tunnel behind a NAT that forgot it never heals",
        &[
            ("tests/tests/sim_paths.rs", "a_host_that_moves_is_followed"),
            ("tests/tests/sim_faults.rs", "a_partition_of_ten_seconds_is_survived"),
        ],
    ),
    (
        "handshake storms",
        &[
            ("pilot-user/engine/tests/lifecycle.rs", "a_handshake_that_ends_a_tunnel_asks_for_no_other"),
            ("tests/tests/weaknesses.rs", "a_dead_path_costs_few_handshakes"),
        ],
    ),
    (
        "an application that does not read blocks the other applications of its node",
        &[
            ("pilot-user/tests/api/many.rs", "a_connection_that_is_not_read_takes_nothing_of_the_others"),
            ("pilot-user/tests/api/half_open.rs", "with_one_direction_they_are_gone"),
        ],
    ),
    (
        "what was reported to have arrived is lost with the node's process",
        &[
            ("pilot-user/tests/api/carries_on.rs", "nothing_consumed_is_missing_whenever_a_node_is_killed"),
            ("pilot-user/tests/api/killed.rs", "under_load_only_what_was_confirmed_is_consumed"),
        ],
    ),
    (
        "a malformed command brings the node down, or every application's session",
        &[("pilot-user/tests/api/daemon.rs", "what_is_malformed_ends_its_own_session")],
    ),
    (
        "anyone can claim to be a node, and what proved it once can be replayed",
        &[
            ("pilot-user/engine/tests/introductions.rs", "who_is_in_the_middle_cannot_be_anybody_else"),
            ("pilot-user/engine/tests/introductions.rs", "what_is_forged_or_repeated_makes_nobody_known"),
        ],
    ),
    (
        "who asked to be trusted is trusted, without anybody having said so",
        &[
            ("pilot-user/engine/tests/introductions.rs", "strangers_are_introduced_and_then_let_in"),
            ("pilot-user/tests/api/introduce.rs", "the_node_that_runs_asks"),
        ],
    ),
    (
        "the node changes what it does, or tells others of it, without being asked to",
        &[
            ("pilot-user/tests/api/life.rs", "a_configuration_is_read_again"),
            ("pilot-user/tests/api/metrics.rs", "what_is_no_scrape_is_refused"),
        ],
    ),
    (
        "an error says that a request failed, and nothing else",
        &[
            ("pilot-user/tests/api/every_command.rs", "every_command_has_its_exit_codes_json_and_hints"),
            ("pilot-user/tests/api/doctor.rs", "a_node_that_runs_is_asked"),
            ("pilot-user/tests/api/doctor.rs", "rights_that_are_missing_are_named"),
            ("tests/tests/nodes/rights.rs", "an_unprivileged_node_runs_over_udp_and_says_why"),
        ],
    ),
];

#[test]
fn each_weakness_has_a_test_that_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (weakness, tests) in WEAKNESSES {
        for (file, test) in tests {
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
            assert!(text.contains(&format!("fn {test}")), "{weakness}: there is no {test} in {file}");
        }
    }
}

/// wire.md W5.10: a reader that always lets the sender run out of credit, over a path that loses a fifth of all packets both
/// ways, and so many of the updates and of the probes that ask for them.
#[test]
fn transfers_survive_lost_window_updates() {
    for seed in 0..16 {
        let plan = Plan { seed, streams: 1, stream_bytes: 2 << 20, messages: 0, nap: Duration::from_millis(50) };
        let mut world = World::<SimLink>::new(seed, plan);
        world.set_conditions(Conditions { loss: PerMille(200), ..Conditions::GOOD });
        assert!(world.run_until(Duration::from_secs(300), World::is_done), "seed {seed}: stopped");
        assert!(world.hosts.iter().all(|host| host.oracle.closed().is_empty()), "in one connection");
        world.finish();
    }
}

/// wire.md W3.11: nobody is there for a minute, while both ends have something to say.
#[test]
fn a_dead_path_costs_few_handshakes() {
    let plan = Plan { seed: 1, streams: 1, stream_bytes: 1 << 20, messages: 100, nap: Duration::ZERO };
    let mut world = World::<SimLink>::new(1, plan);
    world.set_conditions(Conditions { delay: Duration::from_millis(5), ..Conditions::GOOD });
    world.run(Duration::from_millis(20));
    assert!(!world.is_done(), "in the middle");
    let before = [0, 1].map(|host| world.netem(host).sent);
    world.set_conditions(Conditions::PARTITIONED);
    world.run(Duration::from_secs(60));
    for (host, before) in before.into_iter().enumerate() {
        // An initiation or probe a second each, and until the tunnel is given up no more.
        let sent = world.netem(host).sent - before;
        assert!(sent < 200, "host {host} sent {sent} packets into silence");
    }
    world.finish();
}

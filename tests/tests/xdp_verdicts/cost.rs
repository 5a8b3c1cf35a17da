//! What a verdict costs: printed, not asserted, because it is a time. Some 30 ns of each are the kernel's own, of running a program
//! this way at all.
//!
//! `cargo test -p pilot-tests --test xdp_verdicts -- cost --nocapture`

use super::*;

/// Runs of one frame. Higher: no more is learnt. Lower: the clock's own step shows.
const RUNS: u32 = 1_000_000;

/// Time per run, in ns (BPF_PROG_TEST_RUN with `repeat`).
fn cost(program: &Program, frame: &[u8]) -> (u32, u128) {
    let steer: &Xdp = program.ebpf.program(maps::PROGRAM).expect("loaded").try_into().expect("an XDP program");
    let options = TestRunOptions { data_in: Some(frame), repeat: RUNS, ..TestRunOptions::new() };
    let ran = steer.test_run(options).expect("the kernel runs it");
    (ran.return_value, ran.duration.as_nanos())
}

#[test]
fn the_cost_of_each_verdict_is_told() {
    let Some(program) = Program::load("the_cost_of_each_verdict_is_told", Rules::new(1500)) else { return };
    let program = program.open_socket();
    let all = cases();
    let frame = |name: &str| &all.iter().find(|(case, ..)| *case == name).expect("a case").1;
    for (name, action) in [
        ("data", XDP_REDIRECT),
        ("data over IPv6", XDP_REDIRECT),
        ("ARP", XDP_PASS),
        ("data of another session", XDP_PASS),
        ("source outside allow_from", XDP_DROP),
    ] {
        let (returned, ns) = cost(&program, frame(name));
        assert_eq!(returned, action, "{name}");
        println!("{name}: {ns} ns");
    }
}

//! The XDP program, loaded once and attached again and again.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use pilot_common::maps::Config;
use pilot_common::steer::{PassReason, Verdict};
use pilot_user::control::attach::{AttachMode, Program, Steering};
use pilot_xsk::nic::Facts;
use pilot_xsk::{Options, Xsk};

use crate::netns::{End, World};
use crate::{SESSION, data};

/// It keeps what it knows of sessions and what it counted, and forgets the sockets: those of another device would swallow
/// what arrives.
#[test]
fn a_program_attached_anew_knows_its_sessions_and_no_sockets() {
    let Some(world) = World::new("anew") else { return };
    let peer = world.inside(End::A, || UdpSocket::bind("10.77.0.1:0").unwrap());
    world.inside(End::B, || {
        let facts = Facts::read("vb").unwrap();
        let local = BTreeSet::from(["10.77.0.2".parse().unwrap()]);
        let config = Config { port: 4242, mtu: facts.mtu, allow_all: true };
        let steering = Steering { config, local: &local, allow_from: &[] };
        let mut program = Program::load(1).unwrap();
        assert!(program.sessions(1).is_err(), "it was loaded for one worker");
        program.sessions(0).unwrap().insert(SESSION);
        program.attach("vb", facts.ifindex, AttachMode::Generic, &steering).unwrap();
        let options = Options { mode: pilot_xsk::Mode::Copy, ..Options::for_mtu(facts.mtu) };
        let mut xsk = Xsk::open(facts.ifindex, 0, &options).unwrap();
        xsk.refill().unwrap();
        program.set_socket(0, xsk.fd()).unwrap();

        let verdicts = [Verdict::Redirect, Verdict::Pass(PassReason::NoSocket)];
        let expect = |program: &Program, expected: [u64; 2]| {
            peer.send_to(&data(1, 60), "10.77.0.2:4242").unwrap();
            let counted = || verdicts.map(|verdict| program.counters().unwrap().get(verdict));
            for _ in 0..6000 {
                if counted().iter().sum::<u64>() == expected[0] + expected[1] {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(counted(), expected);
        };
        expect(&program, [1, 0]);
        let id = program.id();
        program.attach("vb", facts.ifindex, AttachMode::Generic, &steering).unwrap();
        assert_eq!(program.id(), id);
        expect(&program, [1, 1]);
        program.set_socket(0, xsk.fd()).unwrap();
        expect(&program, [2, 1]);
    });
}

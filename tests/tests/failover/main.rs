//! AF_XDP taken away from a running node in every way there is, while a file and while deltas are on their way: nothing is
//! lost, the node says what it does, and AF_XDP comes back.
//!
//! ```text
//!   namespace a: pilot send / ping ── veth-a ◄────► veth-b ── namespace b: pilot listen
//!                  the fault is at either end, and then mended
//! ```
//!
//! How long nothing moved is printed, and not judged: what is promised is that nothing is lost.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a failure here is a failed test")]

mod fault;
#[allow(dead_code, reason = "what these tests do not need of it, the tests it was written for do")]
#[path = "../nodes/pilot.rs"]
mod pilot;
#[allow(dead_code, reason = "what these tests do not need of it, the tests it was written for do")]
#[path = "../nodes/scene.rs"]
mod scene;
mod traffic;

use fault::Fault;
use scene::End;
use traffic::{during_bulk, during_bulk_on, during_deltas, during_deltas_on};

/// Nobody tells the node: it looks.
#[test]
fn program_detached_from_outside() {
    during_bulk(Fault::Detached, End::B);
    during_bulk(Fault::Detached, End::A);
    during_deltas(Fault::Detached, End::B);
    during_deltas(Fault::Detached, End::A);
}

#[test]
fn interface_down_and_up() {
    during_bulk(Fault::Down, End::B);
    during_bulk(Fault::Down, End::A);
    during_deltas(Fault::Down, End::B);
    during_deltas(Fault::Down, End::A);
}

/// Both sockets live on, and the workers go on handing over what the other's queue gets.
#[test]
fn interface_with_two_queues_down_and_up() {
    during_bulk_on(2, Fault::Down, End::B);
    during_deltas_on(2, Fault::Down, End::B);
    during_deltas_on(2, Fault::Down, End::A);
}

/// All sockets are made anew.
#[test]
fn program_of_two_queues_detached_from_outside() {
    during_bulk_on(2, Fault::Detached, End::B);
}

/// At the receiver it makes a black hole for the sender, who is told nothing (wire.md W6.6).
#[test]
fn mtu_changed() {
    during_bulk(Fault::Mtu, End::B);
    during_bulk(Fault::Mtu, End::A);
    during_deltas(Fault::Mtu, End::B);
    during_deltas(Fault::Mtu, End::A);
}

/// It is there before the node, which leaves it alone, and goes while the node runs.
#[test]
fn foreign_program_there_already() {
    during_bulk(Fault::Foreign, End::B);
    during_bulk(Fault::Foreign, End::A);
    during_deltas(Fault::Foreign, End::B);
    during_deltas(Fault::Foreign, End::A);
}

/// Which takes the other end's device with it.
#[test]
fn device_deleted_and_made_again() {
    during_bulk(Fault::Deleted, End::B);
    during_bulk(Fault::Deleted, End::A);
    during_deltas(Fault::Deleted, End::B);
    during_deltas(Fault::Deleted, End::A);
}

#[test]
fn device_moved_to_another_namespace_and_back() {
    during_bulk(Fault::Moved, End::B);
    during_bulk(Fault::Moved, End::A);
    during_deltas(Fault::Moved, End::B);
    during_deltas(Fault::Moved, End::A);
}

/// So fast that the device looks as if nothing had been: same index, same program, dead socket.
#[test]
fn device_moved_away_and_back_at_once() {
    during_bulk(Fault::MovedBriefly, End::B);
    during_deltas(Fault::MovedBriefly, End::B);
    during_deltas(Fault::MovedBriefly, End::A);
}

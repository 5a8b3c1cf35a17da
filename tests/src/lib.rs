//! The simulator: nodes and the network between them in one thread, in virtual time, from one seed.
//!
//! Each host runs the production loop ([`pilot_user::worker::turn`]) over a link whose far end the simulator holds:
//! [`link::SimLink`], or the AF_XDP link over rings in memory ([`xdp::XdpPort`]). What a host sends goes through a
//! [`netem::Netem`]; what applications read is checked by an [`oracle::Oracle`]. A run depends on nothing but its seed.
//!
//! A host's computing takes as much virtual time as its [`world::Cost`] says, which is none unless it is told, and timers are
//! as exact as the engine asks for: what depends on scheduling is tested on real devices.
#![forbid(unsafe_code)]

pub mod contexts;
pub mod everything;
pub mod fired;
pub mod fuzz;
mod introductions;
pub mod link;
pub mod logs;
pub mod netem;
pub mod oracle;
pub mod plan;
pub mod random;
pub mod world;
pub mod xdp;

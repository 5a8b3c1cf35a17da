//! Several sockets on one UDP port, a worker each, and the kernel steering datagrams to the worker that owns the session.

use std::io;
use std::os::fd::AsFd;

use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt};
use pilot_common::wire::PacketType;

/// Workers a session id can name: it has a byte for them (wire.md W1.2).
const WORKERS_MAX: usize = 256;

/// The sockets of one node's workers on one port (SO_REUSEPORT).
///
/// The kernel knows them by the order in which they were bound, and moves the last into the place of one that is closed. So
/// they are opened in the order of their workers, each on the port of the first, and stay open together.
///
/// A port that is shared is not reserved: another process of the same user can join it. A node with one worker has no
/// group, and its port to itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// How many there are.
    pub workers: usize,
}

impl Group {
    /// Makes the kernel choose the socket of the group by [`program`]. All sockets of the group bring the same program, so
    /// that it makes no difference which of them came last.
    pub(super) fn steer(self, socket: &impl AsFd) -> io::Result<()> {
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            let text = format!("workers on one port: given {}, allowed: 1 to {WORKERS_MAX}", self.workers);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut program = program();
        // The kernel copies the program, and writes nothing to it.
        let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
    }
}

/// Types whose session id is the receiver's, and so names its worker. An initiation has none yet, a reset has its sender's
/// (wire.md W4.9), and what is relayed has another header first.
const OWNED: [PacketType; 3] = [PacketType::Response, PacketType::Cookie, PacketType::Data];

/// The worker that owns the session of a datagram: the top byte of its session id. `None` where there is none: then it is
/// anybody's.
#[inline]
pub(crate) fn owner(datagram: &[u8]) -> Option<usize> {
    let &[first, worker, ..] = datagram else { return None };
    PacketType::from_first_byte(first).filter(|kind| OWNED.contains(kind)).map(|_| usize::from(worker))
}

/// Instructions of [`program`]: two that read the type, one for each type that is looked for, three ends.
const INSTRUCTIONS: usize = 2 + OWNED.len() + 3;

/// [`owner`] for the kernel, which shows a program of a reuseport group the UDP payload, and lets it return the place of a
/// socket (`net/core/sock_reuseport.c`). A place that nobody has makes the kernel choose by the flow's hash: so initiations
/// are spread over the workers, while those of one source reach the same, and an id of no worker reaches some worker, which
/// counts it. A datagram too short to read is the first worker's, which refuses it.
fn program() -> [sock_filter; INSTRUCTIONS] {
    let instruction = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load_byte = |at| instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at);
    let mut program = [instruction(libc::BPF_RET | libc::BPF_K, NOBODY); INSTRUCTIONS];
    program[0] = load_byte(0);
    program[1] = instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, TYPE_BITS);
    for (number, kind) in OWNED.into_iter().enumerate() {
        // Over the comparisons that are left and over the first end.
        let jt = (OWNED.len() - number) as u8;
        let equal = instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (kind as u32) << TYPE_SHIFT);
        program[2 + number] = sock_filter { jt, ..equal };
    }
    program[INSTRUCTIONS - 2] = load_byte(1);
    program[INSTRUCTIONS - 1] = instruction(libc::BPF_RET | libc::BPF_A, 0);
    program
}

/// Where the type is in the first byte (wire.md §1).
const TYPE_SHIFT: u32 = 2;
const TYPE_BITS: u32 = 0b111 << TYPE_SHIFT;

/// A place that no socket has.
const NOBODY: u32 = u32::MAX;

//! The smallest XDP program that serves: redirect to the XSKMAP's slot of the receive queue, else pass.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const MAP_CREATE: i64 = 0;
const MAP_UPDATE: i64 = 2;
const PROG_LOAD: i64 = 5;
const LINK_CREATE: i64 = 28;

const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const FLAG_SKB_MODE: u32 = 1 << 1;
const XDP_HAS_FRAGS: u32 = 1 << 5;
const SLOTS: u32 = 4;

/// The program, attached in generic mode until dropped.
pub(crate) struct Redirect {
    map: OwnedFd,
    _link: OwnedFd,
}

impl Redirect {
    /// Attaches to the interface with this index in the calling thread's namespace.
    pub(crate) fn attach(ifindex: u32) -> io::Result<Self> {
        // map_type, key_size, value_size, max_entries
        let map = bpf(MAP_CREATE, &mut [MAP_TYPE_XSKMAP, 4, 4, SLOTS])?;
        let fd = u64::from(map.as_raw_fd() as u32);
        let program: [u64; 6] = [
            0x61 | 2 << 8 | 1 << 12 | 16 << 16, // r2 = ctx->rx_queue_index
            0x18 | 1 << 8 | 1 << 12 | fd << 32, // r1 = map (64-bit immediate, first half)
            0,                                  // second half
            0xb7 | 3 << 8 | 2 << 32,            // r3 = XDP_PASS
            0x85 | 51 << 32,                    // call bpf_redirect_map
            0x95,                               // exit
        ];
        let license = c"GPL";
        let (code, terms) = (program.as_ptr().expose_provenance() as u64, license.as_ptr().expose_provenance() as u64);
        let halves = |address: u64| [address as u32, (address >> 32) as u32];
        let ([code_low, code_high], [terms_low, terms_high]) = (halves(code), halves(terms));
        // prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, and the rest zero
        let code = [PROG_TYPE_XDP, program.len() as u32, code_low, code_high, terms_low, terms_high];
        let load: &mut [u32] = &mut [&code[..], &[0, 0, 0, 0, 0, XDP_HAS_FRAGS]].concat();
        let program = bpf(PROG_LOAD, load)?;
        // prog_fd, target_ifindex, attach_type, flags
        let link = bpf(LINK_CREATE, &mut [program.as_raw_fd() as u32, ifindex, ATTACH_XDP, FLAG_SKB_MODE])?;
        Ok(Self { map, _link: link })
    }

    /// Puts a socket into a queue's slot.
    pub(crate) fn set(&self, queue: u32, socket: RawFd) -> io::Result<()> {
        let (key, value) = (queue, socket as u32);
        let ([key_low, key_high], [value_low, value_high]) = (words(&key), words(&value));
        // map_fd, padding, key, value, flags (64 bits)
        call(MAP_UPDATE, &mut [self.map.as_raw_fd() as u32, 0, key_low, key_high, value_low, value_high, 0, 0])
            .map(drop)
    }
}

/// A pointer as the two halves of a `__aligned_u64`, little-endian.
fn words(value: &u32) -> [u32; 2] {
    let address = std::ptr::from_ref(value).expose_provenance() as u64;
    [address as u32, (address >> 32) as u32]
}

fn bpf(command: i64, attributes: &mut [u32]) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: i64, attributes: &mut [u32]) -> io::Result<i32> {
    let len = size_of_val(attributes);
    // SAFETY: the kernel reads `len` bytes of attributes; the pointers in them lead to values that live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

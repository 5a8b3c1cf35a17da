//! The log of what was sent to our port and not redirected, through the ring of aya-log.

use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use pilot_common::cursor::Cursor as _;
use pilot_common::datagram::Layout;
use pilot_common::maps::{Config, MAX_LOG_LINES};

use crate::ctx::Frame;
use crate::maps;

/// Logs a frame with the number of its verdict, unless it is other traffic of this host or the second's lines are used up.
///
/// Never inlined: what the kernel runs for a frame that is not logged stays small, and this has a stack frame of its own.
/// The context comes by value, that is, as a pointer in a register; by reference it would have to lie on the caller's stack.
///
/// Under a name of its own: the one that the compiler would make up has a hash of where the checkout lies.
#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) fn unredirected(ctx: XdpContext, verdict: u32) {
    let Some(config) = maps::CONFIG.get(0) else { return };
    let frame = Frame::new(&ctx);
    let Ok(layout) = Layout::parse(&frame) else { return };
    if layout.destination_port != Config::from_words(config).port {
        return;
    }
    let Ok(source) = layout.source(&frame) else { return };
    let Ok(destination) = layout.destination(&frame) else { return };
    let Some(left_out) = take_line() else { return };
    // `pilot_user::control::xdp_log` reads these words.
    debug!(
        &ctx,
        "{} {:i} {} {:i} {} {} {}",
        verdict,
        source.octets(),
        layout.source_port,
        destination.octets(),
        layout.destination_port,
        frame.frame_len() as u64,
        left_out
    );
}

/// One line of this CPU's second: how many were left out since the last one, or `None` when this one is to be left out.
#[inline(always)]
fn take_line() -> Option<u64> {
    let window = maps::LOG_WINDOW.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value, which nothing else reads or writes, see `maps::count`; it is valid while
    // the program runs, and no other reference to it is made.
    let [second, lines, left_out] = unsafe { &mut *window };
    let now = maps::now_ns() / 1_000_000_000;
    if *second != now {
        (*second, *lines) = (now, 0);
    }
    if *lines == MAX_LOG_LINES {
        *left_out += 1;
        return None;
    }
    *lines += 1;
    Some(core::mem::take(left_out))
}

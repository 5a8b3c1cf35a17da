//! The XDP program: the verdict of [`pilot_common::steer`], carried out and counted.
#![no_std]
#![no_main]

mod ctx;
mod log;
mod maps;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use pilot_common::maps::{Config, is_logging};
use pilot_common::steer::{PassReason, Verdict, steer};

use crate::ctx::Frame;

/// Steers one received frame. `frags`: the device may have any MTU, and the frame lie in several buffers.
#[xdp(frags)]
fn pilot_steer(ctx: XdpContext) -> u32 {
    let Some(config) = maps::CONFIG.get(0) else { return XDP_PASS };
    let (action, verdict) = match steer(&Frame::new(&ctx), &Config::from_words(config), &maps::Tables(config)) {
        Verdict::Redirect => match maps::XSKS.redirect(ctx.rx_queue_index(), u64::from(XDP_PASS)) {
            Ok(_) => (XDP_REDIRECT, Verdict::Redirect),
            Err(_) => (XDP_PASS, Verdict::Pass(PassReason::NoSocket)),
        },
        verdict @ Verdict::Pass(_) => (XDP_PASS, verdict),
        verdict @ Verdict::Drop(_) => (XDP_DROP, verdict),
    };
    maps::count(verdict);
    // What is redirected is not logged: the fast path has no test of the switch.
    if action != XDP_REDIRECT && is_logging(config) {
        log::unredirected(ctx, verdict.counter() as u32);
    }
    action
}

/// What `core` wants to exist. Nothing calls it: a program with a loop without end is one that the kernel refuses.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel is told, which decides on the helpers that a program may call.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

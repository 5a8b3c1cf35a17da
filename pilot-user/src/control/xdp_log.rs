//! The XDP program's log: read from its ring in the control thread, and given to `tracing` at level DEBUG.
//!
//! What bounds it: the program logs at most [`MAX_LOG_LINES`](pilot_common::maps::MAX_LOG_LINES) frames a second and CPU,
//! and says in its next line how many it left out; what finds the ring full, 128 KiB, is lost. A flood fills neither the
//! control thread nor the disk, and the counters have every frame.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use pilot_common::stats::Verdict;
use tokio::io::unix::AsyncFd;

/// Whether anybody would see the log: `RUST_LOG=debug`, or `pilot_user=debug`.
pub(super) fn is_wanted() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

/// Reads the ring whenever it has something, until it is dropped.
pub(super) async fn read(mut ring: AsyncFd<EbpfLogger<ToTracing>>) {
    loop {
        match ring.readable_mut().await {
            Ok(mut ready) => {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
            Err(error) => {
                tracing::warn!(%error, "the XDP program's log cannot be read any more");
                return;
            }
        }
    }
}

/// Where aya-log puts the lines.
pub(super) struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        is_wanted()
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        match Line::parse(&text) {
            Some(Line { verdict, source, destination, len, left_out }) => {
                tracing::debug!(reason = verdict.name(), %source, %destination, len, left_out, "not redirected");
            }
            None => tracing::warn!(text, "the XDP program logged what this version does not understand"),
        }
    }

    fn flush(&self) {}
}

/// A frame that was sent to our port and not redirected.
#[derive(PartialEq, Eq, Debug)]
struct Line {
    verdict: Verdict,
    source: SocketAddr,
    destination: SocketAddr,
    /// Bytes of the frame.
    len: u64,
    /// Frames of the same CPU that were not logged since its last line.
    left_out: u64,
}

impl Line {
    /// Reads the seven words that `pilot-ebpf/src/log.rs` writes.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let verdict = *Verdict::ALL.get(words.next()?.parse::<usize>().ok()?)?;
        let mut address = || {
            // IPv4 as v4-mapped, as the program has it.
            let ip: Ipv6Addr = words.next()?.parse().ok()?;
            Some(SocketAddr::new(IpAddr::V6(ip).to_canonical(), words.next()?.parse().ok()?))
        };
        let (source, destination) = (address()?, address()?);
        let mut number = || words.next()?.parse().ok();
        let (len, left_out) = (number()?, number()?);
        words.next().is_none().then_some(Self { verdict, source, destination, len, left_out })
    }
}

#[cfg(test)]
mod tests {
    use pilot_common::stats::PassReason;

    use super::*;

    /// What the program really writes is in tests/tests/xdp_verdicts.
    #[test]
    fn a_line_is_seven_words() {
        let verdict = Verdict::Pass(PassReason::OtherVersion);
        let number = verdict.counter();
        for (source, words) in [("192.0.2.1:4000", "::ffff:192.0.2.1 4000"), ("[2001:db8::1]:4000", "2001:db8::1 4000")]
        {
            let source = source.parse().unwrap();
            let line = Line { verdict, source, destination: "[::1]:4242".parse().unwrap(), len: 60, left_out: 7 };
            assert_eq!(Line::parse(&format!("{number} {words} ::1 4242 60 7")), Some(line));
        }
        for bad in
            ["", "0", "99 ::1 1 ::1 1 60 7", "0 ::1 1 ::1 1 60", "0 ::1 1 ::1 1 60 7 8", "0 ::1 70000 ::1 1 60 7"]
        {
            assert_eq!(Line::parse(bad), None, "{bad}");
        }
    }
}

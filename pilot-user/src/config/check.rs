//! What of a configuration is about the host: its device, its cores, what it takes.

use std::collections::HashSet;

use pilot_common::maps::{MAX_ALLOW_FROM, MAX_QUEUES};
use pilot_engine::limits::REKEY_AFTER_TIME;

use super::error::{Error, refuse};
use super::{BulkChoice, Config, DatapathChoice};

/// Longest name of a network device, in bytes (IFNAMSIZ less the final zero).
const INTERFACE_NAME_MAX: usize = 15;

/// Queues of one node, each with a worker that should have a core. Between every two workers there are two rings of 280 KiB:
/// 66 MiB for as many as this. Lower: large machines cannot use their devices. Higher: the memory grows with the square.
const QUEUES_MAX: usize = 16;

/// Initiations a second: about what reading nothing else takes of a core (see [`pilot_engine::limits::HANDSHAKES_PER_SECOND`]). Higher: no limit at all.
const HANDSHAKES_PER_SECOND_MAX: u32 = 3000;

impl Config {
    pub(super) fn check_device(&self) -> Result<(), Error> {
        let Some(name) = &self.interface else {
            return match self.datapath {
                DatapathChoice::Xdp => refuse("interface", "nothing", "a device's name, when `datapath` is \"xdp\""),
                DatapathChoice::Auto | DatapathChoice::Udp => Ok(()),
            };
        };
        let bad = name.is_empty()
            || name.len() > INTERFACE_NAME_MAX
            || name.chars().any(|c| c == '/' || c.is_whitespace() || c == '\0');
        if bad {
            return refuse(
                "interface",
                format!("{name:?}"),
                format!("a device's name as `ip link` shows it, 1 to {INTERFACE_NAME_MAX} bytes"),
            );
        }
        Ok(())
    }

    pub(super) fn check_workers(&self) -> Result<(), Error> {
        let given = format!("{:?}", self.queues);
        if self.queues.is_empty() || self.queues.len() > QUEUES_MAX {
            return refuse("queues", given, format!("1 to {QUEUES_MAX} queues"));
        }
        if self.queues.iter().collect::<HashSet<_>>().len() < self.queues.len() {
            return refuse("queues", given, "each queue once");
        }
        if self.queues.iter().any(|queue| *queue >= MAX_QUEUES) {
            return refuse("queues", given, format!("numbers from 0 to {}", MAX_QUEUES - 1));
        }
        if !self.cores.is_empty() && self.cores.len() != self.queues.len() {
            return refuse("cores", format!("{:?}", self.cores), format!("{} cores, one per queue", self.queues.len()));
        }
        if self.allow_from.len() > MAX_ALLOW_FROM as usize {
            return refuse("allow_from", format!("{} prefixes", self.allow_from.len()), format!("{MAX_ALLOW_FROM}"));
        }
        Ok(())
    }

    pub(super) fn check_bulk(&self) -> Result<(), Error> {
        let Some(port) = self.bulk_port else { return Ok(()) };
        if self.bulk == BulkChoice::Never {
            return refuse("bulk_port", port, "none, when `bulk` is \"never\"");
        }
        if self.datapath == DatapathChoice::Udp || self.interface.is_none() {
            return refuse("bulk_port", port, "none, without AF_XDP: the first port then takes bulk");
        }
        if port == 0 || port == self.listen.port() {
            return refuse("bulk_port", port, format!("a port other than {}", self.listen.port()));
        }
        Ok(())
    }

    pub(super) fn check_handshakes(&self) -> Result<(), Error> {
        let (all, of_source) = (self.handshakes_per_second, self.handshakes_per_source_per_second);
        if all > HANDSHAKES_PER_SECOND_MAX {
            return refuse(
                "handshakes_per_second",
                all,
                format!("0 (always by cookie) to {HANDSHAKES_PER_SECOND_MAX}"),
            );
        }
        if !(1..=HANDSHAKES_PER_SECOND_MAX).contains(&of_source) {
            return refuse("handshakes_per_source_per_second", of_source, format!("1 to {HANDSHAKES_PER_SECOND_MAX}"));
        }
        // The engine takes tenths of seconds, for tests; here no fabric has a use for them.
        let (given, most) = (self.rekey_after.as_secs(), REKEY_AFTER_TIME.as_secs());
        if !(1..=most).contains(&given) {
            return refuse("rekey_after_s", given, format!("1 to {most} seconds"));
        }
        Ok(())
    }
}

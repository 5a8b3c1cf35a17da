//! The decision about a received frame (`docs/wire.md` §2): a pure function, in the kernel and in userspace the same.

use crate::address::{Address, Prefix};
use crate::cursor::Cursor;
use crate::datagram::Layout;
use crate::maps::Config;
pub use crate::stats::{DropReason, PassReason, Verdict};
use crate::wire::{Header, HeaderError, PacketType};

/// The two questions that need a table. BPF maps answer them in the kernel, [`Lists`] in userspace.
pub trait Tables {
    /// Whether the address is one that this node receives on.
    fn is_local(&self, address: Address) -> bool;

    /// Whether `allow_from` has a prefix that contains the address.
    fn is_allowed(&self, address: Address) -> bool;
}

/// What becomes of a frame.
///
/// From what costs least to what costs most, and nothing is dropped before it is known to be addressed to us (wire.md
/// W2.1 to W2.3).
#[inline(always)]
pub fn steer<C: Cursor + ?Sized>(frame: &C, config: &Config, tables: &impl Tables) -> Verdict {
    judge(frame, config, tables).unwrap_or_else(Verdict::Pass)
}

#[inline(always)]
fn judge<C: Cursor + ?Sized>(frame: &C, config: &Config, tables: &impl Tables) -> Result<Verdict, PassReason> {
    let layout = Layout::parse(frame)?;
    if layout.destination_port != config.port {
        return Err(PassReason::OtherPort);
    }
    if layout.packet_len > config.mtu as usize {
        return Err(PassReason::LongerThanMtu);
    }
    if !tables.is_local(layout.destination(frame)?) {
        return Err(PassReason::OtherAddress);
    }
    let source = layout.source(frame)?;
    Ok(admit(frame, layout.payload_offset, layout.payload_len, source, config, tables))
}

/// What becomes of a datagram that is addressed to us: the part of [`steer`] that the socket link applies too (W2.4).
///
/// The datagram is the `len` bytes at `offset` of `bytes`. `Pass` there means that no tunnel of this version gets it.
#[inline(always)]
pub fn admit<C: Cursor + ?Sized>(
    bytes: &C,
    offset: usize,
    len: usize,
    source: Address,
    config: &Config,
    tables: &impl Tables,
) -> Verdict {
    if !config.allow_all && !tables.is_allowed(source) {
        return Verdict::Drop(DropReason::SourceNotAllowed);
    }
    if len < crate::wire::HEADER_LEN {
        return Verdict::Pass(PassReason::NoHeader);
    }
    let Some(header) = bytes.read(offset) else {
        return Verdict::Pass(PassReason::Truncated);
    };
    match Header::decode(header, len) {
        Ok(Header { packet_type: PacketType::Relayed, .. }) => Verdict::Pass(PassReason::Relayed),
        Ok(_) => Verdict::Redirect,
        Err(HeaderError::Short) => Verdict::Pass(PassReason::NoHeader),
        Err(HeaderError::Version) => Verdict::Pass(PassReason::OtherVersion),
        Err(HeaderError::Type) => Verdict::Drop(DropReason::ReservedType),
        Err(HeaderError::Length) => Verdict::Drop(DropReason::WrongLength),
    }
}

/// [`Tables`] as lists, searched from the front: for the few addresses and prefixes that a node has.
#[derive(Clone, Copy, Debug)]
pub struct Lists<'a> {
    /// The addresses that the node receives on.
    pub local: &'a [Address],
    /// The prefixes that may send to it.
    pub allow_from: &'a [Prefix],
}

impl Tables for Lists<'_> {
    #[inline]
    fn is_local(&self, address: Address) -> bool {
        self.local.contains(&address)
    }

    #[inline]
    fn is_allowed(&self, address: Address) -> bool {
        self.allow_from.iter().any(|prefix| prefix.contains(address))
    }
}

//! What an operator may choose of where the node else decides.

use serde::{Deserialize, Serialize};

/// Which way the operator wants datagrams to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatapathChoice {
    /// AF_XDP where it can be had, and else the kernel's UDP.
    #[default]
    Auto,
    /// AF_XDP, and a warning while it cannot be had.
    Xdp,
    /// The kernel's UDP only.
    Udp,
}

/// How the operator wants the XDP program attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachChoice {
    /// As the device and the number of queues suggest.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the network stack.
    Generic,
}

/// Whether this node sends bulk through the kernel's UDP, which moves up to 64 KiB at once, rather than by AF_XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BulkChoice {
    /// Where that is faster, and while there is bulk.
    #[default]
    Auto,
    /// Everything, whenever it works.
    Always,
    /// Nothing.
    Never,
}

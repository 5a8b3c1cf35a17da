//! Facts about a network interface, as seen from the calling thread's network namespace.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd};

use crate::abi::Plain;
use crate::sys;

/// What is known about an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its index, which sockets and XDP programs are bound to.
    pub ifindex: u32,
    /// Its Ethernet address; zeros if it has none.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// The driver's name, if it says one.
    pub driver: Option<String>,
    /// Active receive queues, at least 1. Queue ids are below this.
    pub rx_queues: u32,
    /// Active send queues, at least 1.
    pub tx_queues: u32,
    /// Whether no hardware bus is behind it (veth, bridge, tun, bond, dummy, loopback ...). Generic XDP suits such a
    /// device better: a native program would take segmentation offload from its peer.
    pub is_virtual: bool,
    /// The NUMA node that a PCI device is at, if the machine has several.
    pub numa_node: Option<u32>,
}

impl Facts {
    /// Asks the kernel about the interface `name`.
    pub fn read(name: &str) -> io::Result<Self> {
        let c_name =
            CString::new(name).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in the name"))?;
        // The kernel's limit includes the terminating NUL.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            let text = format!("interface name {name:?}: allowed are 1 to {} bytes", libc::IFNAMSIZ - 1);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // SAFETY: reads a C string that lives through the call.
        let ifindex = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        if ifindex == 0 {
            return Err(io::Error::last_os_error());
        }

        let socket = sys::control_socket()?;
        let fd = socket.as_fd();
        let ask = |code: libc::c_ulong| -> io::Result<libc::ifreq> {
            let mut request = request_for(name);
            sys::interface_request(fd, code, &mut request).map(|()| request)
        };
        // SAFETY: SIOCGIFHWADDR filled this member; any bits are a value of it.
        let address = unsafe { ask(libc::SIOCGIFHWADDR)?.ifr_ifru.ifru_hwaddr };
        // SAFETY: SIOCGIFMTU filled this member.
        let mtu = unsafe { ask(libc::SIOCGIFMTU)?.ifr_ifru.ifru_mtu };
        // SAFETY: SIOCGIFFLAGS filled this member.
        let flags = unsafe { ask(libc::SIOCGIFFLAGS)?.ifr_ifru.ifru_flags };

        let mut mac = [0; 6];
        if address.sa_family == libc::ARPHRD_ETHER {
            for (to, from) in mac.iter_mut().zip(address.sa_data) {
                *to = from as u8;
            }
        }

        let mut info = DriverInfo::new();
        let (driver, bus) = match sys::ethtool(fd, &mut request_for(name), &mut info) {
            Ok(()) => (text(&info.driver), text(&info.bus_info)),
            // EOPNOTSUPP: the loopback device, for one.
            Err(_) => (None, None),
        };
        let (rx_queues, tx_queues) = queues(fd, name, ifindex);
        Ok(Self {
            name: name.to_owned(),
            ifindex,
            mac,
            mtu: u32::try_from(mtu).unwrap_or(0),
            up: i32::from(flags) & libc::IFF_UP != 0,
            driver,
            rx_queues,
            tx_queues,
            is_virtual: is_virtual(bus.as_deref()),
            numa_node: bus.as_deref().and_then(numa_node),
        })
    }
}

/// The kernel names the parent device of every interface that has one; a few virtual drivers put a word there instead.
fn is_virtual(bus: Option<&str>) -> bool {
    matches!(bus, None | Some("N/A" | "tun" | "tap"))
}

/// Of a PCI device, whose name on the bus is the same in all network namespaces. The kernel says -1 where there is one node.
fn numa_node(bus: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/bus/pci/devices/{bus}/numa_node")).ok()?.trim().parse().ok()
}

/// Active queues as (RX, TX), at least one each.
fn queues(fd: BorrowedFd<'_>, name: &str, ifindex: u32) -> (u32, u32) {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    let (rx, tx) = match sys::ethtool(fd, &mut request_for(name), &mut channels) {
        Ok(()) => (
            channels.rx_count.saturating_add(channels.combined_count),
            channels.tx_count.saturating_add(channels.combined_count),
        ),
        // A driver without channels: its queues are fixed, and sysfs lists them.
        Err(_) => listed_queues(name, ifindex).unwrap_or_default(),
    };
    (rx.max(1), tx.max(1))
}

/// The queues in sysfs. Its mount may show another network namespace: `None` unless the interface is the same one.
fn listed_queues(name: &str, ifindex: u32) -> Option<(u32, u32)> {
    let directory = format!("/sys/class/net/{name}");
    if std::fs::read_to_string(format!("{directory}/ifindex")).ok()?.trim() != ifindex.to_string() {
        return None;
    }
    let (mut rx, mut tx) = (0, 0);
    for entry in std::fs::read_dir(format!("{directory}/queues")).ok()?.flatten() {
        match entry.file_name().as_encoded_bytes() {
            [b'r', b'x', b'-', ..] => rx += 1,
            [b't', b'x', b'-', ..] => tx += 1,
            _ => {}
        }
    }
    Some((rx, tx))
}

fn request_for(name: &str) -> libc::ifreq {
    // SAFETY: a C struct of integers, arrays and a nullable pointer: all zeros are a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One less than the array: the last byte stays NUL.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request
}

fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
}

const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_drvinfo`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus_info: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

impl DriverInfo {
    fn new() -> Self {
        let (name, reserved) = ([0; 32], [0; 12]);
        let (version, firmware, bus_info, rom) = (name, name, name, name);
        Self { command: ETHTOOL_GDRVINFO, driver: name, version, firmware, bus_info, rom, reserved, counts: [0; 5] }
    }
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx_count: u32,
    tx_count: u32,
    other_count: u32,
    combined_count: u32,
}

// SAFETY: repr(C) structs of integers and bytes, without padding by the asserts below.
unsafe impl Plain for DriverInfo {}
// SAFETY: as above.
unsafe impl Plain for Channels {}

const _: () = assert!(size_of::<DriverInfo>() == 196 && size_of::<Channels>() == 36);

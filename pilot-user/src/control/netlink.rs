//! The kernel's word on devices, routes and neighbours, and the notice that it has changed.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;

use futures_util::{FutureExt, Stream, StreamExt};
use pilot_common::eth::Mac;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, MulticastGroup, RouteMessageBuilder};

use crate::link::next_hops::{NextHop, NextHops};

/// What only netlink says about a network device; the rest is in [`pilot_xsk::nic::Facts`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// The device under it and the VLAN, if it is a VLAN device.
    pub vlan: Option<(u32, u16)>,
    /// Ids of the XDP programs attached to it.
    pub programs: Vec<u32>,
}

/// A connection to the kernel's routing tables. Lives inside a tokio runtime.
pub struct Netlink {
    handle: Handle,
    /// What changed; of a device that is gone its index.
    notices: Box<dyn Stream<Item = Option<u32>> + Unpin>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Connects and subscribes to changes of links, addresses, routes and neighbours. Needs no privilege.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        let notices = Box::new(messages.map(|(message, _)| deleted(&message.payload)));
        Ok(Self { handle, notices, connection: tokio::spawn(connection) })
    }

    /// Returns once something changed, with the indexes of devices that were deleted or left this namespace; several changes
    /// at once are one. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Vec<u32> {
        let Some(first) = self.notices.next().await else {
            // The socket is gone; the control thread's slow timers go on without notices.
            return std::future::pending().await;
        };
        let mut gone = Vec::from_iter(first);
        while let Some(Some(notice)) = self.notices.next().now_or_never() {
            gone.extend(notice);
        }
        gone
    }

    /// The device called `name`.
    ///
    /// # Errors
    /// When there is no such device, or the kernel does not answer.
    pub async fn interface(&self, name: &str) -> Result<Interface, rtnetlink::Error> {
        first(self.handle.link().get().match_name(name.to_owned()).execute()).await.map(|message| interface(&message))
    }

    /// All devices.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, rtnetlink::Error> {
        let mut messages = std::pin::pin!(self.handle.link().get().execute());
        let mut all = Vec::new();
        while let Some(message) = messages.next().await {
            all.push(interface(&message?));
        }
        Ok(all)
    }

    /// All addresses of this host.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn addresses(&self) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
        let mut messages = std::pin::pin!(self.handle.address().get().execute());
        let mut all = BTreeSet::new();
        while let Some(message) = messages.next().await {
            let attributes = message?.attributes;
            // On a point-to-point device ADDRESS is the other end, and LOCAL ours; elsewhere they are the same.
            let local = attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let either = attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            all.extend(local.or(either));
        }
        Ok(all)
    }

    /// Takes whatever XDP program is attached through netlink off the device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn clear_xdp(&self, index: u32, generic: bool) -> Result<(), rtnetlink::Error> {
        const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
        const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
        let flags = if generic { XDP_FLAGS_SKB_MODE } else { XDP_FLAGS_DRV_MODE };
        let nothing = LinkAttribute::Xdp(vec![LinkXdp::Fd(-1), LinkXdp::Flags(flags)]);
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(nothing).build();
        self.handle.link().set(message).execute().await
    }

    /// The ways to `peers`, as the tables stand now. A peer without a usable route has no entry.
    ///
    /// # Errors
    /// When the kernel does not answer. That a peer has no route is not an error.
    pub async fn next_hops(&self, peers: &BTreeSet<IpAddr>) -> Result<NextHops, rtnetlink::Error> {
        let vlans: HashMap<u32, (u32, u16)> =
            self.interfaces().await?.iter().filter_map(|device| Some((device.index, device.vlan?))).collect();
        let mut neighbours = HashMap::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut messages = std::pin::pin!(self.handle.neighbours().get().set_family(version).execute());
            while let Some(message) = messages.next().await {
                neighbours.extend(neighbour(&message?));
            }
        }
        let mut hops = NextHops::with_capacity(peers.len());
        for peer in peers {
            // An error is the kernel's "no route to host".
            let Ok(message) = first(self.handle.route().get(route_request(*peer)).execute()).await else { continue };
            if let Some(route) = route(&message) {
                hops.insert(*peer, route.next_hop(*peer, &vlans, &neighbours));
            }
        }
        Ok(hops)
    }
}

/// The device that a notice says is gone. Those of another family tell only that it left a bridge.
fn deleted(notice: &NetlinkPayload<RouteNetlinkMessage>) -> Option<u32> {
    match notice {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
            if link.header.interface_family == AddressFamily::Unspec =>
        {
            Some(link.header.index)
        }
        _ => None,
    }
}

/// The first answer. The rest must be read too, or the request would stay open.
async fn first<T>(answers: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<T, rtnetlink::Error> {
    let mut answers = std::pin::pin!(answers);
    let answer = answers.next().await.unwrap_or(Err(rtnetlink::Error::RequestFailed));
    while answers.next().await.is_some() {}
    answer
}

fn route_request(peer: IpAddr) -> RouteMessage {
    match peer {
        IpAddr::V4(peer) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(peer, 32).build(),
        IpAddr::V6(peer) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(peer, 128).build(),
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let mut device = Interface { index: message.header.index, ..Interface::default() };
    let (mut under, mut vlan_id) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => under = Some(*index),
            LinkAttribute::Xdp(entries) => device.programs.extend(entries.iter().filter_map(|entry| match entry {
                LinkXdp::ProgId(id) if *id != 0 => Some(*id),
                LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) if *id != 0 => Some(*id),
                _ => None,
            })),
            LinkAttribute::LinkInfo(infos) => {
                vlan_id = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(entries)) => entries.iter().find_map(|entry| match entry {
                        InfoVlan::Id(id) => Some(*id),
                        _ => None,
                    }),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    device.programs.sort_unstable();
    device.programs.dedup();
    device.vlan = under.zip(vlan_id);
    device
}

/// An answer of the routing table, before VLAN devices and neighbours are looked up.
struct Route {
    device: u32,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

/// `None` for everything that is not "send it out of a device": local, blackhole, unreachable, multicast.
fn route(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let (mut device, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(via) => gateway = address(via),
            RouteAttribute::Via(RouteVia::Inet(via)) => gateway = Some(IpAddr::V4(*via)),
            RouteAttribute::Via(RouteVia::Inet6(via)) => gateway = Some(IpAddr::V6(*via)),
            RouteAttribute::PrefSource(preferred) => source = address(preferred),
            _ => {}
        }
    }
    Some(Route { device: device?, gateway, source })
}

impl Route {
    fn next_hop(
        &self,
        peer: IpAddr,
        vlans: &HashMap<u32, (u32, u16)>,
        neighbours: &HashMap<(u32, IpAddr), Mac>,
    ) -> NextHop {
        let mac = neighbours.get(&(self.device, self.gateway.unwrap_or(peer))).copied();
        let (interface, vlan) = match vlans.get(&self.device) {
            Some((under, id)) => (*under, Some(*id)),
            None => (self.device, None),
        };
        NextHop { interface, vlan, source: self.source, mac }
    }
}

/// A neighbour with its Ethernet address. The kernel names none for one that it has not resolved (NUD_INCOMPLETE,
/// NUD_FAILED): to those datagrams go over UDP, and the kernel resolves them while it sends.
fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Mac)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLocalAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    Some(((message.header.ifindex, address?), mac?))
}

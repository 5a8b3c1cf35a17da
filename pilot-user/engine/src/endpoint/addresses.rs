//! The addresses of peers: who asks from elsewhere is a stranger.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::FixedState;

/// Where peers are by configuration, and where they were last, by proof or by what an earlier process knew.
#[derive(Debug, Default)]
pub(crate) struct PeerAddresses {
    /// How many tunnels lead there. Looked up, never iterated. A fast hash will do, because strangers put nothing in.
    tunnels: HashMap<IpAddr, u32, FixedState>,
}

impl PeerAddresses {
    /// Whether a peer is, or may be, at an address, by whichever port.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.tunnels.contains_key(&ip.to_canonical())
    }

    /// A tunnel that led to one address leads to another.
    pub(crate) fn replace(&mut self, old: Option<SocketAddr>, new: Option<SocketAddr>) {
        let [old, new] = [old, new].map(|address| address.map(|address| address.ip().to_canonical()));
        if old == new {
            return;
        }
        if let Some(ip) = new {
            *self.tunnels.entry(ip).or_default() += 1;
        }
        if let Some(ip) = old
            && let Some(tunnels) = self.tunnels.get_mut(&ip)
        {
            *tunnels -= 1;
            if *tunnels == 0 {
                self.tunnels.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_while_any_tunnel_leads_there() {
        let [a, a_again, b] =
            ["10.0.0.1:1", "[::ffff:10.0.0.1]:2", "[2001:db8::1]:1"].map(|it| Some(it.parse().unwrap()));
        let ip = |address: Option<SocketAddr>| address.unwrap().ip();
        let mut addresses = PeerAddresses::default();
        addresses.replace(None, a);
        addresses.replace(None, a_again);
        addresses.replace(a, b);
        assert!(addresses.contains(ip(a)) && addresses.contains(ip(a_again)) && addresses.contains(ip(b)));
        addresses.replace(a_again, a);
        addresses.replace(a, None);
        assert!(!addresses.contains(ip(a)) && addresses.contains(ip(b)));
        addresses.replace(b, None);
        assert!(addresses.tunnels.is_empty());
    }
}

//! What the kernel's tables say, in namespaces.

use std::collections::BTreeSet;
use std::net::IpAddr;

use pilot_user::control::netlink::Netlink;
use pilot_xsk::nic::Facts;

use crate::netns::{End, World};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn ways_lead_through_device_gateway_and_neighbour() {
    let Some(world) = World::new("ways") else { return };
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    world.ip(End::A, &["addr", "add", "2001:db8::1/64", "dev", "va", "nodad"]);
    world.ip(End::A, &["neigh", "add", "10.77.0.2", "lladdr", "02:00:00:00:00:02", "dev", "va"]);
    world.ip(End::A, &["neigh", "add", "2001:db8::2", "lladdr", "02:00:00:00:00:06", "dev", "va"]);
    world.ip(End::A, &["neigh", "add", "10.77.0.3", "dev", "va", "nud", "failed"]);
    world.ip(End::A, &["route", "add", "192.0.2.0/24", "via", "10.77.0.2", "dev", "va"]);
    world.ip(End::A, &["route", "add", "blackhole", "198.51.100.0/24"]);
    world.inside(End::A, || {
        let index = Facts::read("va").unwrap().ifindex;
        let peers = BTreeSet::from(
            ["10.77.0.2", "10.77.0.3", "10.77.0.1", "192.0.2.9", "198.51.100.1", "203.0.113.1", "2001:db8::2"].map(ip),
        );
        block_on(async {
            let netlink = Netlink::open().unwrap();
            let hops = netlink.next_hops(&peers).await.unwrap();
            let way =
                |text: &str| hops.get(&ip(text)).map(|hop| (hop.interface, hop.source, hop.mac.map(|mac| mac[5])));
            let ours = Some(ip("10.77.0.1"));
            assert_eq!(way("10.77.0.2"), Some((index, ours, Some(2))));
            assert_eq!(way("192.0.2.9"), Some((index, ours, Some(2))), "the gateway's address");
            assert_eq!(way("10.77.0.3"), Some((index, ours, None)), "failed");
            assert_eq!(way("2001:db8::2"), Some((index, Some(ip("2001:db8::1")), Some(6))));
            for (text, why) in [("10.77.0.1", "ourselves"), ("198.51.100.1", "blackhole"), ("203.0.113.1", "no route")]
            {
                assert_eq!(way(text), None, "{why}");
            }
            let addresses = netlink.addresses().await.unwrap();
            assert!(addresses.contains(&ip("10.77.0.1")) && addresses.contains(&ip("2001:db8::1")), "{addresses:?}");
            assert!(!addresses.contains(&ip("10.77.0.2")));
            assert!(netlink.interface("nothing").await.is_err());
        });
    });
}

#[test]
fn changes_are_noticed() {
    let Some(world) = World::new("notice") else { return };
    world.inside(End::A, || {
        block_on(async {
            let mut netlink = Netlink::open().unwrap();
            for change in [
                &["neigh", "replace", "10.77.0.2", "lladdr", "02:00:00:00:00:02", "dev", "va"][..],
                &["route", "add", "192.0.2.0/24", "via", "10.77.0.2", "dev", "va"],
                &["addr", "add", "10.78.0.1/24", "dev", "va"],
                &["link", "set", "va", "mtu", "1400"],
            ] {
                world.ip(End::A, change);
                netlink.changed().await;
            }
        });
    });
}

//! A configuration that replaces the one that a node runs with: what of it can be had without a restart, and what that changes.

use std::collections::BTreeSet;

use crate::api::audit::Audit;
use crate::config::{Config, Local, Peer};

/// Why a configuration was not taken. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// What only a restart changes.
    #[error(
        "config: `{field}`: given {given}, running with {running}: only a restart changes it, and nothing was changed"
    )]
    NeedsRestart { field: &'static str, given: String, running: String },
    /// The node is about to end.
    #[error("a worker has ended: nothing was changed")]
    Over,
}

/// What is to be done with a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change<'a> {
    Add(&'a Peer),
    /// The same identity, with another static key, name, address, endpoint or rights.
    Alter(&'a Peer, &'a Peer),
    Remove(&'a Peer),
}

/// What becomes of the peers: those that go first, so that one with another key gets the address of the one before.
///
/// # Errors
/// When something else than peers, users and the time to drain is another.
pub(crate) fn plan<'a>(running: &'a Config, wanted: &'a Config) -> Result<Vec<Change<'a>>, Refused> {
    check_rest(running, wanted)?;
    let of = |config: &'a Config, peer: &Peer| config.peers.iter().find(|other| other.is(peer));
    for peer in &wanted.peers {
        // Whether the other end has it too is settled when tunnels come up; so one that is there stays.
        if let Some(before) = of(running, peer).filter(|before| before.lanes != peer.lanes) {
            let [given, running] = [peer.lanes, before.lanes].map(|lanes| lanes.to_string());
            return Err(Refused::NeedsRestart { field: "peers.lanes", given, running });
        }
    }
    let removed = running.peers.iter().filter(|peer| of(wanted, peer).is_none()).map(Change::Remove);
    let others = wanted.peers.iter().filter_map(|peer| match of(running, peer) {
        None => Some(Change::Add(peer)),
        Some(before) if before != peer => Some(Change::Alter(before, peer)),
        Some(_) => None,
    });
    Ok(removed.chain(others).collect())
}

/// A field that only a restart changes, and how to say what it is.
type Field = (&'static str, fn(&Config) -> String);

fn check_rest(running: &Config, wanted: &Config) -> Result<(), Refused> {
    let Local { users, drain, .. } = running.local.clone();
    let local = Local { users, drain, ..wanted.local.clone() };
    let with_the_same = Config { peers: running.peers.clone(), local, ..wanted.clone() };
    if with_the_same == *running {
        return Ok(());
    }
    let fields: [Field; 19] = [
        ("metrics.listen", |config| format!("{:?}", config.metrics)),
        ("identity", |config| format!("{:?}", config.identity)),
        ("recent_peers", |config| format!("{:?}", config.recent_peers)),
        ("address", |config| config.address.to_string()),
        ("interface", |config| format!("{:?}", config.interface)),
        ("listen", |config| config.listen.to_string()),
        ("datapath", |config| format!("{:?}", config.datapath)),
        ("attach", |config| format!("{:?}", config.attach)),
        ("queues", |config| format!("{:?}", config.queues)),
        ("cores", |config| format!("{:?}", config.cores)),
        ("bulk", |config| format!("{:?}, port {:?}", config.bulk, config.bulk_port)),
        ("handshakes_per_second", |config| {
            format!("{}, {} of a source", config.handshakes_per_second, config.handshakes_per_source_per_second)
        }),
        ("rekey_after_s", |config| config.rekey_after.as_secs().to_string()),
        ("allow_from", |config| config.allow_from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        ("introductions", |config| config.introductions.to_string()),
        ("files", |config| format!("{:?}", config.files)),
        ("local.contexts", |config| config.local.holds_contexts.to_string()),
        ("local.store", |config| format!("{:?}", config.local.store)),
        ("local.socket", |config| format!("{:?}", config.local.socket)),
    ];
    let other = fields.into_iter().find(|(_, of)| of(running) != of(wanted));
    let (field, [given, running]) = other
        .map_or(("local", [wanted, running].map(|config| format!("{:?}", config.local))), |(field, of)| {
            (field, [wanted, running].map(of))
        });
    Err(Refused::NeedsRestart { field, given, running })
}

/// All that is another, a line each.
pub(crate) fn audit(changes: &[Change<'_>], running: &Config, wanted: &Config) -> Vec<Audit> {
    let peers = changes.iter().map(|change| match *change {
        Change::Add(peer) => Audit::PeerAdded { peer: peer.into() },
        Change::Alter(before, after) => Audit::PeerChanged { before: before.into(), peer: after.into() },
        Change::Remove(peer) => Audit::PeerRemoved { peer: peer.into() },
    });
    let (before, after) = (&running.local.users, &wanted.local.users);
    let uids: BTreeSet<u32> = before.keys().chain(after.keys()).copied().collect();
    let users = uids.into_iter().filter_map(|uid| match (before.get(&uid), after.get(&uid)) {
        (before, Some(after)) if before == Some(after) => None,
        (None, Some(may)) => Some(Audit::UserAdded { uid, may: may.clone() }),
        (_, Some(may)) => Some(Audit::UserChanged { uid, may: may.clone() }),
        (_, None) => Some(Audit::UserRemoved { uid }),
    });
    peers.chain(users).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pilot_engine::identity::PublicKey;

    use crate::config::User;

    use super::*;

    fn config(lines: &str, peers: &[(&str, u8, &str)]) -> Config {
        let peers = peers.iter().map(|(name, number, rest)| {
            let key = PublicKey { identity: [*number; 32], static_key: [*number; 32] };
            format!("[[peers]]\nname = '{name}'\naddress = '0:0000.0000.00{number:02x}'\nkey = '{key}'\n{rest}\n")
        });
        let text = "identity = '/k'\naddress = '0:0000.0000.0001'\nlisten = '[::]:1'\n";
        Config::parse(&format!("{text}{lines}\n{}", peers.collect::<String>()), Path::new("x")).unwrap()
    }

    #[test]
    fn peers_are_the_same_by_their_keys() {
        let running = config("", &[("b", 2, ""), ("c", 3, ""), ("d", 4, "")]);
        let wanted = config("", &[("new", 5, ""), ("d", 4, "ports = [7]"), ("b", 2, "")]);
        let changes = plan(&running, &wanted).unwrap();
        let expected = [
            Change::Remove(&running.peers[1]),
            Change::Add(&wanted.peers[0]),
            Change::Alter(&running.peers[2], &wanted.peers[1]),
        ];
        assert_eq!(changes, expected);
        assert_eq!(plan(&running, &running).unwrap(), []);
        // Another static key is the same peer, another identity is another.
        let mut rotated = running.clone();
        rotated.peers[0].key.static_key = [77; 32];
        assert_eq!(plan(&running, &rotated).unwrap(), [Change::Alter(&running.peers[0], &rotated.peers[0])]);
        let wanted = config("", &[("b", 9, ""), ("c", 3, ""), ("d", 4, "")]);
        assert_eq!(
            plan(&running, &wanted).unwrap(),
            [Change::Remove(&running.peers[0]), Change::Add(&wanted.peers[0])]
        );
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let running = config("", &[]);
        for (lines, words) in [
            ("queues = [1]", "`queues`: given [1], running with [0]"),
            ("allow_from = ['10.0.0.0/8']", "`allow_from`: given 10.0.0.0/8, running with :"),
            ("rekey_after_s = 60", "`rekey_after_s`: given 60, running with 120"),
            ("[local]\nsocket = '/s'", "`local.socket`: given \"/s\""),
            ("[local]\ncontexts = false", "`local.contexts`: given false, running with true"),
            ("files = '/f'", "`files`: given Some(\"/f\"), running with None"),
            ("introductions = true", "`introductions`: given true, running with false"),
        ] {
            let error = plan(&running, &config(lines, &[("b", 2, "")])).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("nothing was changed"), "{error}");
        }
        for lines in ["[local]\nusers = [{ uid = 5, ports = [7] }]", "[local]\ndrain_s = 1"] {
            assert_eq!(plan(&running, &config(lines, &[])).unwrap(), []);
        }
    }

    #[test]
    fn each_change_is_a_line() {
        let users = |text: &str| config(&format!("[local]\nusers = [{text}]"), &[]);
        let (running, wanted) = (
            users("{ uid = 5, ports = [7] }, { uid = 6, ports = [7] }, { uid = 7, ports = [] }"),
            users("{ uid = 6, ports = [7] }, { uid = 7, ports = [8] }, { uid = 8, ports = [9] }"),
        );
        let lines = audit(&[], &running, &wanted);
        let [seven, eight] = [8, 9].map(|port| User { ports: BTreeSet::from([port]), ..User::default() });
        assert_eq!(
            lines,
            [
                Audit::UserRemoved { uid: 5 },
                Audit::UserChanged { uid: 7, may: seven },
                Audit::UserAdded { uid: 8, may: eight }
            ]
        );
    }
}

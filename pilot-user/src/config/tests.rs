use pilot_engine::identity::PublicKey;

use super::*;

fn key(number: u8) -> String {
    PublicKey { identity: [number; 32], static_key: [number; 32] }.to_string()
}

/// A good file, with lines replaced: the table's way to make it bad.
fn text(replace: &[(&str, &str)]) -> String {
    let (b, c) = (key(2), key(3));
    let mut text = format!(
        r#"
identity = "a.key"
address = "0:0000.0000.0001"
interface = "veth-a"
listen = "10.77.0.1:4242"
datapath = "auto"
queues = [0]
cores = [1]
allow_from = ["10.77.0.0/24"]
[[peers]]
name = "b"
address = "0:0000.0000.0002"
key = "{b}"
endpoint = "10.77.0.2:4242"
[[peers]]
name = "c"
address = "0:0000.0000.0003"
key = "{c}"
"#
    );
    for (from, to) in replace {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    text
}

fn check(replace: &[(&str, &str)]) -> Result<Config, Error> {
    Config::parse(&text(replace), Path::new("/etc/pilot"))
}

#[test]
fn a_whole_file_is_read() {
    let config = check(&[]).unwrap();
    assert_eq!(config.identity, Path::new("/etc/pilot/a.key"));
    assert_eq!(config.recent_peers, Path::new("/etc/pilot/a.peers"), "beside the identity");
    let files = check(&[("[1]", "[1]\nfiles = 'in'")]).unwrap().files;
    assert_eq!(files.as_deref(), Some(Path::new("/etc/pilot/in")));
    assert_eq!(config.address, OverlayAddress { network: 0, node: 1 });
    assert_eq!(config.interface.as_deref(), Some("veth-a"));
    assert_eq!(config.listen, "10.77.0.1:4242".parse().unwrap());
    assert_eq!((config.datapath, config.queues, config.cores), (DatapathChoice::Auto, vec![0], vec![1]));
    assert_eq!(config.allow_from, ["10.77.0.0/24".parse().unwrap()]);
    assert_eq!(config.peers.len(), 2);
    assert_eq!(config.peers[0].key.to_string(), key(2));
    assert_eq!(config.peers[0].endpoint, Some("10.77.0.2:4242".parse().unwrap()));
    assert_eq!(config.peers[1].endpoint, None);
}

#[test]
fn what_is_optional_has_a_default() {
    let text = "identity = '/k'\naddress = '0:0000.0000.0001'\nlisten = '[::]:1'\n";
    let config = Config::parse(text, Path::new("x")).unwrap();
    assert_eq!(config.identity, Path::new("/k"), "an absolute path stays");
    assert_eq!((config.queues, config.datapath), (vec![0], DatapathChoice::Auto));
    assert_eq!(config.attach, AttachChoice::Auto);
    assert_eq!((config.bulk, config.bulk_port), (BulkChoice::Auto, None));
    assert!(config.cores.is_empty() && config.allow_from.is_empty() && config.peers.is_empty());
}

/// Each message names the field, what was given and what is allowed.
#[test]
fn errors_name_field_given_and_allowed() {
    let b = key(2);
    for (replace, words) in [
        (("identity = \"a.key\"", ""), ["missing field", "identity", ""]),
        (("queues", "queue"), ["unknown field", "queue", "queues"]),
        (("name = \"b\"", "nick = \"b\""), ["unknown field", "nick", "name"]),
        (("\"auto\"", "\"fast\""), ["fast", "auto", "udp"]),
        (("datapath = \"auto\"", "attach = \"driver\""), ["driver", "auto", "native"]),
        (("[0]", "\"all\""), ["queues", "all", "sequence"]),
        (("[0]", "[]"), ["`queues`", "[]", "1 to 16"]),
        (("[0]", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"), ["`queues`", "15, 16]", "1 to 16"]),
        (("[0]", "[3, 0, 3]"), ["`queues`", "[3, 0, 3]", "each queue once"]),
        (("[0]", "[0, 1]"), ["`cores`", "[1]", "2 cores"]),
        (("datapath = \"auto\"", "bulk = \"yes\""), ["yes", "auto", "always"]),
        (
            ("[1]", "[1]\nhandshakes_per_second = 3001"),
            ["`handshakes_per_second`", "given 3001", "0 (always by cookie) to 3000"],
        ),
        (("[1]", "[1]\nhandshakes_per_second = -1"), ["handshakes_per_second", "-1", "u32"]),
        (
            ("[1]", "[1]\nhandshakes_per_source_per_second = 0"),
            ["`handshakes_per_source_per_second`", "given 0", "1 to 3000"],
        ),
        (
            ("[1]", "[1]\nhandshakes_per_source_per_second = 3001"),
            ["`handshakes_per_source_per_second`", "given 3001", "1 to 3000"],
        ),
        (("[1]", "[1]\nrekey_after_s = 0"), ["`rekey_after_s`", "given 0", "1 to 120 seconds"]),
        (("[1]", "[1]\nrekey_after_s = 121"), ["`rekey_after_s`", "given 121", "1 to 120 seconds"]),
        (("[1]", "[1]\nlocal = { drain_s = 601 }"), ["`local.drain_s`", "given 601", "0 to 600 seconds"]),
        (("datapath = \"auto\"", "bulk_port = 4242"), ["`bulk_port`", "4242", "other than 4242"]),
        (("datapath = \"auto\"", "bulk_port = 0"), ["`bulk_port`", "given 0", "other than 4242"]),
        (("datapath = \"auto\"", "bulk_port = 65536"), ["bulk_port", "65536", "u16"]),
        (("\"auto\"", "\"udp\"\nbulk_port = 4243"), ["`bulk_port`", "4243", "without AF_XDP"]),
        (("\"auto\"", "\"auto\"\nbulk = \"never\"\nbulk_port = 4243"), ["`bulk_port`", "4243", "never"]),
        (("[0]", "[256]"), ["`queues`", "[256]", "0 to 255"]),
        (("[1]", "[1, 2]"), ["`cores`", "[1, 2]", "1 cores"]),
        (("\"0:0000.0000.0001\"", "\"1\""), ["`address`", "\"1\"", "0:0000.0000.0001"]),
        (("veth-a", ""), ["`interface`", "\"\"", "ip link"]),
        (("veth-a", "a/b"), ["`interface`", "\"a/b\"", "ip link"]),
        (("veth-a", "0123456789abcdef"), ["`interface`", "0123456789abcdef", "15 bytes"]),
        (("10.77.0.1:4242", "10.77.0.1"), ["`listen`", "\"10.77.0.1\"", "192.0.2.1:4242"]),
        (("10.77.0.0/24", "10.77.0.0/33"), ["`allow_from`", "10.77.0.0/33", "0 to 32"]),
        (("10.77.0.0/24", "10.77.0.1/24"), ["`allow_from`", "10.77.0.1/24", "10.77.0.0/24"]),
        (("10.77.0.0/24", "10.78.0.0/24"), ["`peers.b.endpoint`", "10.77.0.2:4242", "allow_from"]),
        (("10.77.0.2:4242", "[::1]:5"), ["`peers.b.endpoint`", "[::1]:5", "IPv4"]),
        (("10.77.0.2:4242", "10.77.0.2:0"), ["`peers.b.endpoint`", "10.77.0.2:0", "port"]),
        (("10.77.0.2:4242", "b.example:1"), ["`peers.b.endpoint`", "b.example:1", "IP address"]),
        (("name = \"c\"", "name = \"b\""), ["`peers.name`", "\"b\" twice", "different"]),
        (("name = \"c\"", "name = \"\""), ["`peers.name`", "\"\"", "a name"]),
        (("0.0003", "0.0002"), ["`peers.c.address`", "which is b's", "its own"]),
        (("0.0003", "0.0001"), ["`peers.c.address`", "which is this node's", "its own"]),
        (("name = \"c\"", "name = \"c\"\nlanes = 0"), ["`peers.c.lanes`", "given 0", "1 to 16 tunnels"]),
        (("name = \"c\"", "name = \"c\"\nlanes = 17"), ["`peers.c.lanes`", "given 17", "1 to 16 tunnels"]),
        ((&key(3), &b), ["`peers.c.key`", "b's key", "its own"]),
        ((&b, "pilot1-x"), ["`peers.b.key`", "pilot1-x", "pilot keygen"]),
    ] {
        let error = check(&[replace]).expect_err(&format!("{replace:?}")).to_string();
        for word in words {
            assert!(error.contains(word), "{replace:?}: {word:?} is not in {error:?}");
        }
    }
}

#[test]
fn several_queues_have_a_core_each() {
    let config = check(&[("[0]", "[2, 0, 1]"), ("[1]", "[1, 0, 3]")]).unwrap();
    assert_eq!((config.queues, config.cores), (vec![2, 0, 1], vec![1, 0, 3]), "in their order");
}

/// A node of several workers holds contexts when it is told to; and who may use them is by name.
#[test]
fn contexts_of_applications_are_as_given() {
    let local = |lines: &str| {
        let text = format!("{}\n[local]\n{lines}", text(&[("[0]", "[0, 1]"), ("[1]", "[0, 1]")]));
        Config::parse(&text, Path::new("x")).map(|config| config.local)
    };
    assert!(check(&[]).unwrap().local.holds_contexts && !local("").unwrap().holds_contexts);
    assert!(local("contexts = true").unwrap().holds_contexts);
    assert_eq!(local("").unwrap().store, Path::new("x/a.contexts"), "beside the identity");
    assert_eq!(local("store = 'y'").unwrap().store, Path::new("x/y"));
    let users = local("users = [{ uid = 7, contexts = { follow = ['*'] } }]").unwrap().users;
    assert_eq!((users[&7].ports.len(), users[&7].contexts.follow.as_slice()), (0, &["*".to_owned()][..]));
    let error = local("users = [{ uid = 7, contexts = { read = ['*'] } }]").unwrap_err().to_string();
    assert!(error.contains("read") && error.contains("follow"), "{error}");
}

#[test]
fn lanes_and_introductions_are_as_given() {
    let config = check(&[]).unwrap();
    assert!(!config.introductions, "off by default");
    assert_eq!(config.lanes().map(|(place, _, lane)| (place, lane)).collect::<Vec<_>>(), [(0, 0), (1, 0)]);
    let given = [("[1]", "[1]\nintroductions = true"), ("name = \"b\"", "name = \"b\"\nlanes = 3")];
    let config = check(&given).unwrap();
    assert!(config.introductions && config.files.is_none());
    let lanes: Vec<_> = config.lanes().map(|(_, peer, lane)| (peer.name.as_str(), lane)).collect();
    assert_eq!(lanes, [("b", 0), ("b", 1), ("b", 2), ("c", 0)]);
}

#[test]
fn handshakes_and_keys_are_as_given() {
    let config = check(&[]).unwrap();
    let of =
        |config: &Config| (config.handshakes_per_second, config.handshakes_per_source_per_second, config.rekey_after);
    assert_eq!(of(&config), (250, 50, Duration::from_secs(120)), "the engine's own");
    let given = "[1]\nhandshakes_per_second = 0\nhandshakes_per_source_per_second = 7\nrekey_after_s = 1";
    assert_eq!(of(&check(&[("[1]", given)]).unwrap()), (0, 7, Duration::from_secs(1)));
}

#[test]
fn xdp_needs_an_interface_and_udp_does_not() {
    let without = ("interface = \"veth-a\"", "");
    assert!(check(&[without, ("auto", "udp")]).is_ok());
    assert!(check(&[without]).is_ok());
    let error = check(&[without, ("auto", "xdp")]).unwrap_err().to_string();
    assert!(error.contains("`interface`") && error.contains("nothing"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::read(Path::new("/nonexistent/pilot.toml")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/pilot.toml"), "{error}");
}

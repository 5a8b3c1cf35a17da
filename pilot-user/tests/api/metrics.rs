//! A daemon's metrics, as a scraper has them: over HTTP where that is configured, and by the node's socket.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pilot_user::Node;

use crate::daemon::{LONG, Up, pilot};
use crate::scene::Scene;

/// Names that documents and dashboards rely on, with their kinds.
const NAMES: &str = include_str!("../../../docs/metrics.md");

/// How long who says nothing keeps a place, at least.
const PLACE: Duration = Duration::from_secs(4);

/// A sample: its name, its labels as they are written, its value.
type Samples = BTreeMap<(String, String), f64>;

/// Checks the text as the format of Prometheus has it (0.0.4); its samples, and each metric's kind.
fn check(text: &str) -> (Samples, BTreeMap<String, String>) {
    let is_name = |name: &str| {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let (mut samples, mut kinds, mut helped) = (Samples::new(), BTreeMap::new(), BTreeSet::new());
    let mut family = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !words.is_empty() && helped.insert(name.to_owned()), "{line}");
            continue;
        }
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind) && helped.contains(name), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}: twice");
            name.clone_into(&mut family);
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
            continue;
        }
        let end = line.find(['{', ' ']).unwrap();
        let (name, rest) = line.split_at(end);
        let is_of_family = name == family
            || kinds[&family] == "histogram"
                && ["_bucket", "_sum", "_count"].iter().any(|part| name == format!("{family}{part}"));
        assert!(is_name(name) && is_of_family, "{line}: not of {family}");
        let (labels, value) = rest.rsplit_once(' ').unwrap();
        if !labels.is_empty() {
            let inner = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
            for label in inner.split("\",") {
                let (label, text) = label.split_once("=\"").unwrap();
                assert!(is_name(label) && !text.trim_end_matches('"').contains(['"', '\n']), "{line}");
            }
        }
        let value: f64 = value.parse().unwrap();
        let key = (name.to_owned(), labels.to_owned());
        assert!(value >= 0.0 && samples.insert(key, value).is_none(), "{line}");
    }
    (samples, kinds)
}

fn ask(at: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A request that was not read to its end is answered, and then reset.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn scrape(at: SocketAddr) -> String {
    let answer = ask(at, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    assert_eq!(length.parse(), Ok(body.len()));
    body.to_owned()
}

#[tokio::test]
async fn a_node_is_scraped() {
    let scene = Scene::new();
    let at: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let own = std::fs::read_to_string(scene.path("a.toml")).unwrap();
    let (general, peers) = own.split_once("[[peers]]").unwrap();
    std::fs::write(scene.path("a.toml"), format!("{general}[metrics]\nlisten = '{at}'\n[[peers]]{peers}")).unwrap();
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let node = Node::attach(scene.path("a.sock")).await.unwrap();
    let echo = node.connect("b", 7).await.unwrap();
    for _ in 0..100 {
        echo.send("anomalies: 47 -> 48").await.unwrap();
        echo.receive().await.unwrap();
    }
    let (before, kinds) = check(&scrape(at));
    let value = |samples: &Samples, name: &str, labels: &str| samples[&(name.to_owned(), labels.to_owned())];
    for (name, least) in [
        ("pilot_workers", 1.0),
        ("pilot_tunnels", 1.0),
        ("pilot_connections", 1.0),
        ("pilot_applications", 1.0),
        ("pilot_packets_opened_total", 100.0),
        ("pilot_packets_sealed_total", 100.0),
        ("pilot_tunnel_sent_bytes_total", 4800.0),
        ("pilot_rtt_seconds_count", 1.0),
    ] {
        assert!(value(&before, name, "") >= least, "{name}: {before:?}");
    }
    assert!(value(&before, "pilot_handshakes_total", "{result=\"done\"}") >= 1.0);
    assert!(value(&before, "pilot_datagrams_sent_total", "{way=\"udp\"}") >= 100.0);
    assert!(value(&before, "pilot_sent_bytes_total", "{way=\"udp\"}") >= 4800.0);
    assert!(value(&before, "pilot_received_bytes_total", "{way=\"udp\"}") >= 4800.0);
    assert_eq!(value(&before, "pilot_peer_up", "{peer=\"b\",lane=\"0\"}"), 1.0);
    // A histogram's buckets grow to its count.
    let buckets = before.iter().filter(|((name, _), _)| name == "pilot_rtt_seconds_bucket");
    let most = buckets.map(|(_, value)| *value).fold(0.0, f64::max);
    assert_eq!(most, value(&before, "pilot_rtt_seconds_count", ""));
    // What there is is documented, and what is documented is there.
    let documented: BTreeSet<&str> =
        NAMES.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()).collect();
    let there: BTreeSet<&str> = kinds.keys().map(String::as_str).collect();
    assert_eq!(documented, there);
    // Counters only grow, and something happened since.
    echo.send("anomalies: 48 -> 49").await.unwrap();
    echo.receive().await.unwrap();
    let (after, _) = check(&scrape(at));
    for ((name, labels), value) in &before {
        if kinds.get(name).is_some_and(|kind| kind == "counter") {
            assert!(after[&(name.clone(), labels.clone())] >= *value, "{name}{labels}");
        }
    }
    let opened = ["pilot_packets_opened_total", "pilot_packets_sealed_total"];
    assert!(opened.iter().all(|name| value(&after, name, "") > value(&before, name, "")));
    // The same by the socket.
    let (code, said) = pilot(
        env!("CARGO_BIN_EXE_pilot").as_ref(),
        None,
        &["metrics", "--socket", scene.path("a.sock").to_str().unwrap()],
    );
    let (by_socket, its_kinds) = check(said["text"].as_str().unwrap());
    assert_eq!((code, its_kinds), (Some(0), kinds));
    assert!(by_socket.keys().eq(after.keys()), "{by_socket:?}");
}

/// Requests that are none are refused in words, and who says nothing holds up nobody.
#[test]
fn what_is_no_scrape_is_refused() {
    let scene = Scene::new();
    let at: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let own = std::fs::read_to_string(scene.path("a.toml")).unwrap();
    let (general, peers) = own.split_once("[[peers]]").unwrap();
    let with = |listen: &str| format!("{general}[metrics]\nlisten = '{listen}'\n[[peers]]{peers}");
    std::fs::write(scene.path("a.toml"), with(&at.to_string())).unwrap();
    let up = Up::start(&scene, "a");
    let status = |request: &[u8]| ask(at, request).split(' ').nth(1).map(str::to_owned);
    for (request, expected) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"\x16\x03\x01\r\n\r\n", "400"),
        (&[b'x'; 4096], "431"),
    ] {
        assert_eq!(status(request).as_deref(), Some(expected));
    }
    loop {
        let began = Instant::now();
        // All places but one are held by who says nothing.
        let mut silent: Vec<TcpStream> = (0..7).map(|_| TcpStream::connect(at).unwrap()).collect();
        assert!(scrape(at).contains("pilot_tunnels "));
        silent.push(TcpStream::connect(at).unwrap());
        // The ninth gets nothing more than its end, which may come before it has asked.
        let mut ninth = TcpStream::connect(at).unwrap();
        ninth.set_read_timeout(Some(LONG)).unwrap();
        let _ = ninth.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        let is_answered = matches!(ninth.read(&mut [0; 1]), Ok(1..));
        // Later than that, on a busy host, the silent ones may have been left.
        let is_sure = began.elapsed() < PLACE;
        for stream in &mut silent {
            stream.set_read_timeout(Some(LONG)).unwrap();
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "it was left");
        }
        if is_sure {
            assert!(!is_answered);
            break;
        }
    }
    drop(up);
    // Only on the loopback device.
    std::fs::write(scene.path("a.toml"), with("192.0.2.1:9464")).unwrap();
    let config = scene.path("a.toml");
    let (code, said) = pilot(env!("CARGO_BIN_EXE_pilot").as_ref(), None, &["up", "--config", config.to_str().unwrap()]);
    assert!(code == Some(2) && said["error"].as_str().unwrap().contains("`metrics.listen`"), "{said}");
}

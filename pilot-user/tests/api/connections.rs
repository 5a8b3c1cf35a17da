//! Connections between two nodes of this process.

use std::time::Duration;

use pilot_user::api::{Code, Connection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::scene::Scene;

/// Only for hangs.
const LONG: Duration = Duration::from_secs(60);

/// A connection's both ends, and what keeps them.
async fn connected(scene: &Scene) -> (Connection, Connection, [pilot_user::Node; 2]) {
    let (a, b) = (scene.node("a"), scene.node("b"));
    let mut listener = b.listen(7000).await.unwrap();
    let here = timeout(LONG, a.connect("b", 7000));
    let there = timeout(LONG, listener.accept());
    let (here, there) = tokio::join!(here, there);
    (here.unwrap().unwrap(), there.unwrap().unwrap(), [a, b])
}

/// L3.2, L3.3, L3.4, L3.5, L4.1.
#[tokio::test]
async fn messages_go_both_ways_and_the_end_has_a_reason() {
    let scene = Scene::new();
    let (here, there, nodes) = connected(&scene).await;
    assert_eq!((here.peer(), there.peer(), there.port()), ("b", "a", 7000));
    for number in 0..2000_u32 {
        here.send(number.to_be_bytes()).await.unwrap();
        assert_eq!(there.receive().await.unwrap(), number.to_be_bytes());
        there.send([]).await.unwrap();
        assert_eq!(here.receive().await.unwrap(), b"");
    }
    timeout(LONG, here.consumed(1)).await.unwrap().unwrap();
    here.send(b"last words").await.unwrap();
    here.close(7, "that is all").await.unwrap();
    assert_eq!(there.receive().await.unwrap(), b"last words", "what was sent before the close arrives");
    let why = there.receive().await.unwrap_err();
    assert_eq!((why.code, why.peer_code), (Code::Closed, Some(7)));
    assert!(why.words.contains("that is all"), "{why}");
    assert_eq!(there.closed().await, why);
    assert_eq!(there.send("x").await.unwrap_err(), why);
    for node in nodes {
        node.close().await;
    }
}

/// Nodes without threads for their workers, in a runtime with one thread: they sleep and wake for datagrams, for what applications say
/// and for their timers, and end where they are dropped.
#[tokio::test]
async fn nodes_run_in_the_runtime() {
    let scene = Scene::new();
    let (a, b) = (scene.node_in_runtime("a"), scene.node_in_runtime("b"));
    let mut listener = b.listen(7000).await.unwrap();
    let (here, there) = tokio::join!(timeout(LONG, a.connect("b", 7000)), timeout(LONG, listener.accept()));
    let (here, there) = (here.unwrap().unwrap(), there.unwrap().unwrap());
    let talk = async {
        for number in 0..1000_u32 {
            here.send(number.to_be_bytes()).await.unwrap();
            assert_eq!(there.receive().await.unwrap(), number.to_be_bytes());
            there.send([]).await.unwrap();
            here.receive().await.unwrap();
            if number.is_multiple_of(100) {
                // Long enough for the runtime to sleep, and for an ack that is due by time.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    // All together: a node that is not woken goes on when its next timer is due, and would come to an end in minutes.
    timeout(LONG, talk).await.unwrap();
    let (mut sending, _) = here.open_stream();
    let bytes = vec![7; 4 << 20];
    let (written, received) = tokio::join!(
        async {
            sending.write_all(&bytes).await?;
            sending.shutdown().await
        },
        async {
            let (_, mut receiving) = there.accept_stream().await.unwrap();
            let mut received = Vec::new();
            receiving.read_to_end(&mut received).await.map(|_| received)
        },
    );
    written.unwrap();
    assert!(received.unwrap() == bytes);
    // In place: this is the thread that the worker's task would run on.
    drop((here, listener, a));
    let why = timeout(LONG, there.closed()).await.unwrap();
    assert_eq!(why.code, Code::Closed, "{why}");
    b.close().await;
}

#[tokio::test]
async fn who_does_not_listen_is_not_reached() {
    let scene = Scene::new();
    let (a, b) = (scene.node("a"), scene.node("b"));
    let refused = timeout(LONG, a.connect("b", 7001)).await.unwrap().err().unwrap();
    assert_eq!((refused.code, refused.peer_code), (Code::Refused, Some(1)));
    let unknown = a.connect("nobody", 7001).await.err().unwrap();
    assert_eq!(unknown.code, Code::UnknownPeer);
    assert!(unknown.words.contains("configured: b"), "{unknown}");
    let listener = b.listen(7001).await.unwrap();
    assert_eq!(b.listen(7001).await.err().unwrap().code, Code::PortInUse);
    assert_eq!(b.listen(7).await.err().unwrap().code, Code::NotAllowed);
    assert!(b.listen(0).await.unwrap().port() >= 49_152);
    drop(listener);
    // In their order: the port is free when it is asked for again.
    drop(b.listen(7001).await.unwrap());
    assert_eq!(b.peers().await.unwrap()[0]["name"], "a");
    assert_eq!(b.connections().await.unwrap(), serde_json::json!([]));
    assert!(b.stats().await.unwrap()["opened"].as_u64().unwrap() > 0);
}

/// `ports` of a peer in the configuration: what is not in it is refused, whether somebody listens there or not, and services too.
#[tokio::test]
async fn a_peer_reaches_the_ports_that_are_named_for_it() {
    let scene = Scene::new();
    // Its last table is the peer's.
    let config = scene.path("b.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "ports = [7000, 1002]\n").unwrap();
    let (a, b) = (scene.node("a"), scene.node("b"));
    let mut listeners = [b.listen(7000).await.unwrap(), b.listen(7001).await.unwrap()];
    // Of the node itself: echo and files.
    for port in [7001, 7002, 7, 1001] {
        let refused = timeout(LONG, a.connect("b", port)).await.unwrap().err().unwrap();
        assert_eq!((refused.code, refused.peer_code), (Code::Refused, Some(2)), "{port}: {refused}");
        assert!(refused.words.contains(&format!("may not connect to port {port}")), "{refused}");
    }
    let (here, there) = tokio::join!(a.connect("b", 7000), listeners[0].accept());
    here.unwrap().send("allowed").await.unwrap();
    assert_eq!(there.unwrap().receive().await.unwrap(), b"allowed");
    let none = timeout(LONG, a.context("none", "b").follow()).await.unwrap().err().unwrap();
    assert_eq!(none.code, Code::Context, "the owner of contexts answers: {none}");
    // The other way round, nothing is said, and all is allowed.
    let mut listener = a.listen(7001).await.unwrap();
    let (here, there) = tokio::join!(b.connect("a", 7001), listener.accept());
    assert!(here.is_ok() && there.is_ok());
}

/// L5.1, L5.2.
#[tokio::test]
async fn streams_carry_more_than_their_credit_and_end() {
    const BYTES: usize = 8 << 20;
    let scene = Scene::new();
    let (here, there, _nodes) = connected(&scene).await;
    let (mut send, mut recv) = here.open_stream();
    let writer = tokio::spawn(async move {
        let whole: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
        send.write_all(&whole).await.unwrap();
        send.shutdown().await.unwrap();
        send.consumed(BYTES as u64).await.unwrap();
    });
    let (back, mut stream) = timeout(LONG, there.accept_stream()).await.unwrap().unwrap();
    let mut read = Vec::new();
    timeout(LONG, stream.read_to_end(&mut read)).await.unwrap().unwrap();
    assert!(read.len() == BYTES && read.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
    timeout(LONG, writer).await.unwrap().unwrap();
    let mut back = back.unwrap();
    back.write_all(b"thanks").await.unwrap();
    drop(back);
    let mut answer = Vec::new();
    let cut = timeout(LONG, recv.read_to_end(&mut answer)).await.unwrap().unwrap_err();
    assert!(cut.to_string().contains("reset"), "a part is not taken for the whole: {cut}");
    let mut stream = here.open_unidirectional();
    stream.write_all(b"one way").await.unwrap();
    stream.shutdown().await.unwrap();
    let (none, mut recv) = timeout(LONG, there.accept_stream()).await.unwrap().unwrap();
    let mut read = String::new();
    recv.read_to_string(&mut read).await.unwrap();
    assert!(none.is_none() && read == "one way");
}

/// L7.1, L7.2.
#[tokio::test]
async fn calls_are_answered_refused_late_and_given_up() {
    let scene = Scene::new();
    let (here, there, _nodes) = connected(&scene).await;
    let server = tokio::spawn(async move {
        while let Ok(mut call) = there.next_call().await {
            tokio::spawn(async move {
                let (request, deadline) = call.request().await.unwrap();
                match request.as_slice() {
                    b"fail" => call.fail("not today").await.unwrap(),
                    b"drop" => drop(call),
                    b"wait" => {
                        assert_eq!(deadline, Some(Duration::from_millis(50)));
                        std::future::pending().await
                    }
                    request => call.respond([request, b"!"].concat()).await.unwrap(),
                }
            });
        }
    });
    for number in 0..300_u32 {
        let answer = timeout(LONG, here.call(number.to_string(), None)).await.unwrap().unwrap();
        assert_eq!(answer, format!("{number}!").into_bytes());
    }
    let large = vec![1; 1 << 20];
    assert_eq!(timeout(LONG, here.call(&large, None)).await.unwrap().unwrap().len(), large.len() + 1);
    let refused = here.call("fail", Some(LONG)).await.unwrap_err();
    assert_eq!((refused.code, refused.words.as_str()), (Code::Refused, "not today"));
    assert_eq!(here.call("drop", Some(LONG)).await.unwrap_err().peer_code, Some(2));
    let late = here.call("wait", Some(Duration::from_millis(50))).await.unwrap_err();
    assert_eq!(late.code, Code::TimedOut);
    assert_eq!(timeout(LONG, here.call("on", None)).await.unwrap().unwrap(), b"on!", "it goes on");
    drop(here);
    timeout(LONG, server).await.unwrap().unwrap();
}

/// L5.5, and back-pressure: who does not receive is sent a bounded amount, and stops nobody else.
#[tokio::test]
async fn one_that_does_not_receive_stops_no_other() {
    let scene = Scene::new();
    let (a, b) = (scene.node("a"), scene.node("b"));
    let mut listener = b.listen(7000).await.unwrap();
    let (slow, slow_there) = tokio::join!(a.connect("b", 7000), listener.accept());
    let (fast, fast_there) = tokio::join!(a.connect("b", 7000), listener.accept());
    let (slow, slow_there) = (slow.unwrap(), slow_there.unwrap());
    let (fast, fast_there) = (fast.unwrap(), fast_there.unwrap());
    let message = vec![7; 10_000];
    let mut sent = 0;
    while timeout(Duration::from_millis(500), slow.send(&message)).await.is_ok() {
        sent += 1;
        assert!(sent * message.len() < 64 << 20, "nothing holds it back");
    }
    for number in 0..500_u32 {
        fast.send(number.to_be_bytes()).await.unwrap();
        assert_eq!(timeout(LONG, fast_there.receive()).await.unwrap().unwrap(), number.to_be_bytes());
    }
    for _ in 0..sent {
        assert_eq!(timeout(LONG, slow_there.receive()).await.unwrap().unwrap(), message, "nothing is lost");
    }
    timeout(LONG, slow.send("and on")).await.unwrap().unwrap();
}

/// A node that stops ends what its applications have, with words.
#[tokio::test]
async fn a_node_that_stops_says_so_to_all() {
    let scene = Scene::new();
    let (here, there, [a, b]) = connected(&scene).await;
    let kept = b.clone();
    b.close().await;
    assert_eq!(timeout(LONG, there.receive()).await.unwrap().unwrap_err().code, Code::ShuttingDown);
    assert_eq!(timeout(LONG, here.receive()).await.unwrap().unwrap_err().code, Code::Closed);
    assert_eq!(timeout(LONG, kept.closed()).await.unwrap().code, Code::ShuttingDown);
    assert_eq!(kept.connect("a", 7000).await.err().unwrap().code, Code::ShuttingDown);
    drop(a);
}

//! Nodes that are killed: what was reported to be consumed is at its reader (local-protocol.md L4.2).

use std::collections::VecDeque;
use std::time::Duration;

use pilot_user::Node;
use pilot_user::api::{Code, Connection, Error};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::daemon::{Raw, Up};
use crate::scene::Scene;

/// Only for hangs.
const LONG: Duration = Duration::from_secs(60);

/// L4.2: an application that does not read consumes nothing, although its node has all of it.
#[tokio::test]
async fn what_a_node_holds_for_its_application_is_not_consumed() {
    // As much as a node gives an application without credit in return; more than its socket holds.
    const MESSAGES: u32 = 240;
    let scene = Scene::new();
    let (_up, up) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let writer = Node::attach(scene.path("a.sock")).await.unwrap();
    let mut reader = Raw::hello(&scene.path("b.sock"));
    reader.request(2, &json!({"op": "listen", "port": 7000}));
    assert_eq!(reader.frame().unwrap().2, json!({"port": 7000}));
    let connecting = tokio::spawn(async move { (writer.connect("b", 7000).await.unwrap(), writer) });
    let accepting = tokio::task::spawn_blocking(move || {
        let (_, connection, _) = reader.frame().unwrap();
        reader.request(3, &json!({"op": "accept", "connection": connection}));
        assert_eq!(reader.frame().unwrap().1, 3);
        (reader, connection)
    });
    let ((here, _writer), (mut reader, connection)) = (connecting.await.unwrap(), accepting.await.unwrap());
    for number in 0..MESSAGES {
        let mut message = vec![0; 1000];
        message[..4].copy_from_slice(&number.to_be_bytes());
        here.send(message).await.unwrap();
    }
    // For as long as it would take.
    assert!(timeout(Duration::from_secs(1), here.consumed(1)).await.is_err(), "nobody has read it");
    let (mut reader, read) = tokio::task::spawn_blocking(move || {
        for _ in 0..100 {
            assert_eq!(reader.frame().unwrap().0, 0x10);
        }
        reader.say(0x14, connection, &(100 * 1064_u32).to_be_bytes());
        // Answered behind the credit, and in front of it what the node has given before.
        reader.request(4, &json!({"op": "peers"}));
        let read = 100 + std::iter::from_fn(|| reader.frame()).take_while(|(kind, ..)| *kind == 0x10).count();
        (reader, read)
    })
    .await
    .unwrap();
    drop(up);
    let left = tokio::task::spawn_blocking(move || std::iter::from_fn(|| reader.frame()).count()).await.unwrap();
    let _up = Up::start(&scene, "b");
    let why = timeout(LONG, here.closed()).await.unwrap();
    assert_eq!(why.code, Code::PeerRestarted, "{why}");
    assert_eq!(here.messages_consumed(), 100, "of {read} that were given, and {left} behind them");
}

/// Cost of what is read of each flow and not confirmed: with the largest piece less than half of the beginning's credit (L5.2), or its
/// sender would wait for ever.
const KEPT_BACK: u32 = 50_000;

/// A reader that confirms what it reads later, and then no more; with what it has confirmed of messages, and of a stream's bytes.
struct Laggard {
    raw: Raw,
    connection: u32,
    stream: Option<u32>,
    /// Costs that are owed.
    owed: [VecDeque<u32>; 2],
    confirmed: [u64; 2],
    given: [u64; 2],
}

impl Laggard {
    /// Takes a frame. Whether it was the answer to a request.
    fn take(&mut self, confirms: bool) -> bool {
        let (kind, id, body) = self.raw.bytes().unwrap();
        let flow = match (kind, id) {
            (0x10, id) if id == self.connection => 0,
            (0x12, id) if Some(id) == self.stream => 1,
            (0x04, id) if id == self.connection => {
                let event: Value = serde_json::from_slice(&body).unwrap();
                self.stream = self.stream.or(event["stream"].as_u64().map(|id| id as u32));
                return false;
            }
            (kind, _) => return kind == 0x02,
        };
        let weight = |bytes: u64| if flow == 0 { 1 } else { bytes };
        self.given[flow] += weight(body.len() as u64);
        self.owed[flow].push_back(body.len() as u32 + 64);
        while let Some(&cost) = self.owed[flow].front()
            && confirms
            && self.owed[flow].iter().sum::<u32>() - cost > KEPT_BACK
        {
            self.owed[flow].pop_front();
            self.confirmed[flow] += weight(u64::from(cost) - 64);
            self.raw.say(0x14, id, &cost.to_be_bytes());
        }
        false
    }
}

/// L4.2: under load, and killed: what was reported is what the reader has confirmed, although it was given more.
#[tokio::test]
async fn under_load_only_what_was_confirmed_is_consumed() {
    let scene = Scene::new();
    let (a, up) = (scene.node("a"), Up::start(&scene, "b"));
    let mut raw = Raw::hello(&scene.path("b.sock"));
    raw.request(2, &json!({"op": "listen", "port": 7000}));
    assert_eq!(raw.frame().unwrap().2, json!({"port": 7000}));
    let accepting = tokio::task::spawn_blocking(move || {
        let (_, connection, _) = raw.frame().unwrap();
        raw.request(3, &json!({"op": "accept", "connection": connection}));
        assert_eq!(raw.frame().unwrap().1, 3);
        (raw, connection)
    });
    let (here, accepted) = tokio::join!(a.connect("b", 7000), accepting);
    let (here, (raw, connection)) = (here.unwrap(), accepted.unwrap());
    let messages = tokio::spawn({
        let here = here.clone();
        async move { while here.send([7; 500]).await.is_ok() {} }
    });
    let mut stream = here.open_unidirectional();
    let bytes = tokio::spawn(async move {
        while stream.write_all(&[7; 500]).await.is_ok() {}
        stream
    });
    let (owed, confirmed, given) = Default::default();
    let mut reader = Laggard { raw, connection, stream: None, owed, confirmed, given };
    let reading = tokio::task::spawn_blocking(move || {
        while reader.confirmed[0] < 3000 || reader.confirmed[1] < 1_000_000 {
            reader.take(true);
        }
        // What the node has given before it answers was given for as long as it takes to tell the writer of something later.
        reader.raw.request(4, &json!({"op": "peers"}));
        while !reader.take(false) {}
        reader
    });
    let reader = timeout(LONG, reading).await.unwrap().unwrap();
    assert!(reader.given[0] > reader.confirmed[0] && reader.given[1] > reader.confirmed[1]);
    timeout(LONG, here.consumed(reader.confirmed[0])).await.unwrap().unwrap();
    let echo = a.connect("b", 7).await.unwrap();
    for _ in 0..10 {
        echo.send("x").await.unwrap();
        echo.receive().await.unwrap();
    }
    drop(up);
    let _up = Up::start(&scene, "b");
    let why = timeout(LONG, here.closed()).await.unwrap();
    assert_eq!(why.code, Code::PeerRestarted, "{why}");
    messages.await.unwrap();
    let stream = timeout(LONG, bytes).await.unwrap().unwrap();
    assert_eq!(here.messages_consumed(), reader.confirmed[0], "of {} that were given", reader.given[0]);
    let more = stream.consumed(reader.confirmed[1] + 1).await;
    assert!(more.is_err(), "{} bytes confirmed, {} given", reader.confirmed[1], reader.given[1]);
}

/// Writes numbers as messages and the same on a stream, until it is over; how much was reported to be consumed of either.
fn write(connection: Connection) -> [JoinHandle<u64>; 2] {
    let (messages, mut stream) = (connection.clone(), connection.open_unidirectional());
    let messages = tokio::spawn(async move {
        let (mut sent, mut consumed) = (0_u32, 0);
        while messages.send([&sent.to_be_bytes()[..], &[0; 500]].concat()).await.is_ok() {
            sent += 1;
            // What is reported under load is reported when all of it is consumed.
            if sent.is_multiple_of(50) && messages.consumed(sent.into()).await.is_ok() {
                consumed = u64::from(sent);
            }
        }
        consumed.max(messages.messages_consumed())
    });
    let stream = tokio::spawn(async move {
        let (mut written, mut consumed) = (0_u32, 0);
        while stream.write_all(&written.to_be_bytes()).await.is_ok() {
            written += 1;
            if written.is_multiple_of(5000) && stream.consumed(4 * u64::from(written)).await.is_ok() {
                consumed = 4 * u64::from(written);
            }
        }
        consumed
    });
    [messages, stream]
}

/// Reads both to their ends; how much there was, all of it in order.
fn read(connection: Connection) -> [JoinHandle<(u64, Error)>; 2] {
    let messages = connection.clone();
    let messages = tokio::spawn(async move {
        let mut read = 0_u32;
        loop {
            match messages.receive().await {
                Ok(message) => assert_eq!(message[..4], read.to_be_bytes()),
                Err(why) => return (read.into(), why),
            }
            read += 1;
        }
    });
    let stream = tokio::spawn(async move {
        let (_, mut stream) = connection.accept_stream().await.unwrap();
        let (mut read, mut bytes) = (0, vec![0; 10_000]);
        while let Ok(length @ 1..) = stream.read(&mut bytes).await {
            for (at, byte) in (read..).zip(&bytes[..length]) {
                assert_eq!(*byte, ((at / 4) as u32).to_be_bytes()[(at % 4) as usize]);
            }
            read += length as u64;
        }
        (read, connection.closed().await)
    });
    [messages, stream]
}

/// L4.2: under load, the reader's node is killed, or the writer's: their applications are told, and live.
#[tokio::test]
async fn nothing_that_was_consumed_is_missing_when_a_node_is_killed() {
    for killed in ["b", "a"] {
        let scene = Scene::new();
        let (a, b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
        let writer = Node::attach(scene.path("a.sock")).await.unwrap();
        let reader = Node::attach(scene.path("b.sock")).await.unwrap();
        let mut listener = reader.listen(7000).await.unwrap();
        let (here, there) = tokio::join!(writer.connect("b", 7000), listener.accept());
        let (here, there) = (here.unwrap(), there.unwrap());
        let [messages, stream] = write(here.clone());
        let reading = read(there);
        timeout(LONG, here.consumed(2000)).await.unwrap().unwrap();
        // Its peer finds out when the next process of that node begins.
        let (_survivor, _next) = match killed {
            "a" => {
                drop(a);
                (b, Up::start(&scene, "a"))
            }
            _ => {
                drop(b);
                (a, Up::start(&scene, "b"))
            }
        };
        let [of_messages, of_stream] = reading;
        let (read_messages, why) = timeout(LONG, of_messages).await.unwrap().unwrap();
        let (read_bytes, _) = timeout(LONG, of_stream).await.unwrap().unwrap();
        let expected = if killed == "b" { Code::ShuttingDown } else { Code::PeerRestarted };
        assert_eq!(why.code, expected, "{why}");
        let consumed = timeout(LONG, messages).await.unwrap().unwrap();
        let consumed_bytes = timeout(LONG, stream).await.unwrap().unwrap();
        println!("{killed}: {consumed} of {read_messages} messages, {consumed_bytes} of {read_bytes} bytes");
        assert!(consumed >= 2000 && consumed <= read_messages, "{consumed} of {read_messages}");
        assert!(consumed_bytes > 0 && consumed_bytes <= read_bytes, "{consumed_bytes} of {read_bytes}");
    }
}

/// With reconnect on: the application of a node that was killed goes on with the next one, and has one error for each connection.
#[tokio::test]
async fn an_application_goes_on_at_the_next_node() {
    let scene = Scene::new();
    let mut up = Up::start(&scene, "a");
    let (a, b) = (Node::attach_and_reconnect(scene.path("a.sock")).await.unwrap(), scene.node("b"));
    let (mut at_a, mut at_b) = (a.listen(7000).await.unwrap(), b.listen(7001).await.unwrap());
    let mut events = a.subscribe().await.unwrap();
    // Accepts for as long as there are nodes.
    let (accepted, mut incoming) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let connection = at_a.accept().await.unwrap();
            accepted.send(connection).unwrap();
        }
    });
    for round in 0..3 {
        let (here, there) = tokio::join!(a.connect("b", 7001), at_b.accept());
        let (here, there) = (here.unwrap(), there.unwrap());
        here.send("anomalies: 47 -> 48").await.unwrap();
        assert_eq!(timeout(LONG, there.receive()).await.unwrap().unwrap().len(), 19);
        // The listener may still be on its way back.
        let back = loop {
            match timeout(LONG, b.connect("a", 7000)).await.unwrap() {
                Ok(connection) => break connection,
                Err(error) => assert_eq!((round > 0, error.code), (true, Code::Refused), "{error}"),
            }
        };
        timeout(LONG, incoming.recv()).await.unwrap().unwrap();
        drop(up);
        let why = timeout(LONG, here.receive()).await.unwrap().unwrap_err();
        assert_eq!(why.code, Code::ShuttingDown, "{why}");
        assert_eq!(here.send("late").await.unwrap_err(), why, "and that stays");
        // What is asked now waits for the next.
        let asking = tokio::spawn({
            let a = a.clone();
            async move { a.peers().await }
        });
        up = Up::start(&scene, "a");
        assert_eq!(timeout(LONG, asking).await.unwrap().unwrap().unwrap()[0]["name"], "b");
        assert_eq!(timeout(LONG, back.closed()).await.unwrap().code, Code::PeerRestarted);
    }
    drop(at_b);
    b.close().await;
    // What happens at the latest node is told, from when this end has asked it to.
    let told = loop {
        let b = scene.node("b");
        timeout(LONG, a.connect("b", 7)).await.unwrap().unwrap();
        b.close().await;
        if let Ok(told) = timeout(Duration::from_millis(500), events.next()).await {
            break told;
        }
    };
    assert!(told.is_some_and(|event| event["peer"] == "b"));
}

//! Nodes that are killed at any moment, under load, and applications that carry on at the next ones: nothing that was reported to be
//! consumed is missing at its reader (local-protocol.md L4.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use pilot_user::Node;
use pilot_user::api::{Code, Connection, Error, Listener};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::daemon::Up;
use crate::scene::Scene;

/// Only for hangs.
const LONG: Duration = Duration::from_secs(60);
const KILLS: u64 = 6;
/// Messages and records that are consumed between two kills, at least.
const BETWEEN: [u64; 2] = [300, 3000];
/// A stream is records of a number each.
const RECORD: u64 = 8;

/// xorshift64* (Vigna 2016): a number below `bound`.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// How far both flows are, messages and records: counts of what was ever written, over all connections. Everything runs on one thread.
#[derive(Default)]
struct Progress {
    read: [AtomicU64; 2],
    /// Of what was read, what the writer knows of.
    consumed: [AtomicU64; 2],
    /// Connections that ended.
    ended: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// The application reads something of a flow. In a connection each number follows the last; where it begins, nothing is left out. What
    /// came in an earlier one, and was not reported, it knows by its number.
    fn read(&self, flow: usize, last: &mut Option<u64>, number: u64) {
        let read = self.read[flow].load(Ordering::Relaxed);
        match *last {
            Some(last) => assert_eq!(number, last + 1, "flow {flow}: out of order"),
            None => assert!(number <= read, "flow {flow}: {read} to {number} are missing"),
        }
        *last = Some(number);
        self.read[flow].store(read.max(number + 1), Ordering::Relaxed);
    }

    /// The writer is told that so much was consumed.
    fn told(&self, flow: usize, consumed: u64) {
        let read = self.read[flow].load(Ordering::Relaxed);
        assert!(consumed <= read, "flow {flow}: {consumed} reported, {read} read");
        self.consumed[flow].fetch_max(consumed, Ordering::Relaxed);
    }

    fn consumed(&self) -> [u64; 2] {
        [0, 1].map(|flow| self.consumed[flow].load(Ordering::Relaxed))
    }

    fn read_so_far(&self) -> [u64; 2] {
        [0, 1].map(|flow| self.read[flow].load(Ordering::Relaxed))
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether a writer at a number has more to write: a reader goes on reading what came before its writer's node was killed.
    fn goes_on(&self, flow: usize, number: u64) -> bool {
        !self.stops() || number < self.read_so_far()[flow]
    }
}

/// Connects and writes both flows, from behind what was consumed, and again when the connection is over.
async fn write_all(node: Node, progress: Arc<Progress>) {
    while !progress.stops() {
        let connection = match node.connect("b", 7000).await {
            Ok(connection) => connection,
            Err(error) => {
                let is_passing = [Code::Refused, Code::ShuttingDown, Code::PeerRestarted, Code::TimedOut, Code::Closed];
                assert!(is_passing.contains(&error.code), "{error}");
                sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        tokio::join!(write_messages(&connection, &progress), write_records(&connection, &progress));
        progress.ended.fetch_add(1, Ordering::Relaxed);
    }
}

async fn write_messages(connection: &Connection, progress: &Progress) {
    let [begin, _] = progress.consumed();
    let mut number = begin;
    while progress.goes_on(0, number) {
        progress.told(0, begin + connection.messages_consumed());
        if connection.send([&number.to_be_bytes()[..], &[0; 500]].concat()).await.is_err() {
            break;
        }
        number += 1;
    }
    if progress.stops() {
        connection.consumed(number - begin).await.unwrap();
    } else {
        // How far the peer's application was, may be told with the end.
        let _: Error = connection.closed().await;
    }
    progress.told(0, begin + connection.messages_consumed());
}

async fn write_records(connection: &Connection, progress: &Progress) {
    let [_, begin] = progress.consumed();
    let (mut number, mut stream) = (begin, connection.open_unidirectional());
    while progress.goes_on(1, number) {
        progress.told(1, begin + stream.bytes_consumed() / RECORD);
        let records: Vec<u8> = (number..number + 100).flat_map(u64::to_be_bytes).collect();
        if stream.write_all(&records).await.is_err() {
            break;
        }
        number += 100;
    }
    if progress.stops() {
        stream.consumed((number - begin) * RECORD).await.unwrap();
    } else {
        let _: Error = connection.closed().await;
    }
    progress.told(1, begin + stream.bytes_consumed() / RECORD);
}

/// Accepts and reads one connection to its end after the other, slower than it is written.
async fn read_all(mut listener: Listener, progress: Arc<Progress>, seed: u64) {
    loop {
        let connection = listener.accept().await.unwrap();
        let random = [Random(seed), Random(!seed)];
        let [first, second] = random;
        tokio::join!(read_messages(&connection, &progress, first), read_records(&connection, &progress, second));
    }
}

async fn nap(random: &mut Random) {
    if random.below(50) == 0 {
        sleep(Duration::from_millis(1 + random.below(4))).await;
    }
}

async fn read_messages(connection: &Connection, progress: &Progress, mut random: Random) {
    let mut last = None;
    while let Ok(message) = connection.receive().await {
        progress.read(0, &mut last, u64::from_be_bytes(message[..8].try_into().unwrap()));
        nap(&mut random).await;
    }
}

async fn read_records(connection: &Connection, progress: &Progress, mut random: Random) {
    let Ok((_, mut stream)) = connection.accept_stream().await else { return };
    let (mut last, mut bytes, mut room) = (None, Vec::new(), vec![0; 20_000]);
    loop {
        let wanted = 1 + random.below(room.len() as u64) as usize;
        let Ok(length @ 1..) = stream.read(&mut room[..wanted]).await else { return };
        bytes.extend_from_slice(&room[..length]);
        let (records, rest) = bytes.as_chunks::<{ RECORD as usize }>();
        records.iter().for_each(|record| progress.read(1, &mut last, u64::from_be_bytes(*record)));
        bytes = rest.to_vec();
        nap(&mut random).await;
    }
}

async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, waiting).await.unwrap();
}

/// L4.2: either node is killed at a random moment, again and again; `PILOT_KILL_SEED` draws the same moments once more.
#[tokio::test]
async fn nothing_consumed_is_missing_whenever_a_node_is_killed() {
    let given = std::env::var("PILOT_KILL_SEED").ok().map(|seed| seed.parse().unwrap());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = given.unwrap_or(now | 1);
    println!("PILOT_KILL_SEED={seed}");
    let mut random = Random(seed);
    let scene = Arc::new(Scene::new());
    let mut nodes = ["a", "b"].map(|name| Some(Up::start(&scene, name)));
    let writer = Node::attach_and_reconnect(scene.path("a.sock")).await.unwrap();
    let reader = Node::attach_and_reconnect(scene.path("b.sock")).await.unwrap();
    let progress = Arc::new(Progress::default());
    let listener = reader.listen(7000).await.unwrap();
    let reading = tokio::spawn(read_all(listener, Arc::clone(&progress), seed));
    let writing = tokio::spawn(write_all(writer, Arc::clone(&progress)));
    let goes_on = async || {
        let before = progress.consumed();
        until(|| {
            let now = progress.consumed();
            let enough = (0..2).all(|flow| now[flow] >= before[flow] + BETWEEN[flow]);
            enough || reading.is_finished() || writing.is_finished()
        })
        .await;
        // What went wrong, they have said.
        assert!(!reading.is_finished() && !writing.is_finished());
    };
    for kill in 0..KILLS {
        goes_on().await;
        sleep(Duration::from_micros(random.below(20_000))).await;
        let which = random.below(2) as usize;
        println!("kill {kill}: {}, consumed {:?}", ["a", "b"][which], progress.consumed());
        drop(nodes[which].take());
        sleep(Duration::from_micros(random.below(20_000))).await;
        let scene = Arc::clone(&scene);
        let next = tokio::task::spawn_blocking(move || Up::start(&scene, ["a", "b"][which]));
        nodes[which] = Some(next.await.unwrap());
    }
    goes_on().await;
    progress.stop.store(true, Ordering::Relaxed);
    timeout(LONG, writing).await.unwrap().unwrap();
    reading.abort();
    assert_eq!(progress.consumed(), progress.read_so_far(), "all was read");
    assert_eq!(progress.ended.load(Ordering::Relaxed), KILLS + 1, "connections, and no other ended");
}

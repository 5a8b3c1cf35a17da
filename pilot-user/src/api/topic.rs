//! Topics: an application publishes, and whoever subscribes is sent it, by a convention above connections (local-protocol.md §8).

use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::connection::Connection;
use super::limits::{HELLO_TIMEOUT, MAX_SUBSCRIBERS, TOPIC_QUEUE, TOPIC_SLOW_AFTER};
use super::node::{Listener, Node};
use super::protocol::{Code, Error};
use pilot_engine::limits::MAX_MESSAGE_BYTES;

/// The port of topics, unless their ends agree on another (L8.1).
pub const TOPICS_PORT: u16 = 1103;

/// L8.1: the connection's code where another topic is published, or there are too many subscribers.
const NOT_HERE: u64 = 4;
/// Bytes of a message's number.
const NUMBER_BYTES: usize = 8;

/// Publishes a topic at a port of a node. Dropped, its subscribers are sent what waits for them, and closed.
pub struct Publisher {
    next: u64,
    new: UnboundedReceiver<Sender<Arc<[u8]>>>,
    subscribers: Vec<Subscriber>,
    /// Dropped, nobody new is let in.
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
}

struct Subscriber {
    queue: Sender<Arc<[u8]>>,
    /// It was waited for, and is not again before half of its queue is free.
    is_slow: bool,
}

impl Publisher {
    /// Publishes a topic to those who connect to the listener's port. Within a tokio runtime.
    pub fn new(listener: Listener, topic: &str) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (subscribed, new) = unbounded_channel();
        let accepting = tokio::spawn(accept(listener, topic.into(), subscribed, stopped));
        Self { next: 0, new, subscribers: Vec::new(), stop, accepting }
    }

    /// Waits until so many have subscribed. Cancel-safe.
    ///
    /// # Errors
    /// When the node is gone.
    pub async fn wait_for(&mut self, subscribers: usize) -> Result<(), Error> {
        self.look();
        while self.subscribers.len() < subscribers {
            let queue = self.new.recv().await.ok_or_else(Error::gone)?;
            self.subscribers.push(Subscriber { queue, is_slow: false });
            self.look();
        }
        Ok(())
    }

    /// Sends a message to all that have subscribed; how many they are. One that is behind is waited for, but only for so long
    /// (L8.3), and then misses messages until it has caught up by half. Dropped, some may have been sent it.
    ///
    /// # Errors
    /// When it is too long.
    pub async fn publish(&mut self, message: &[u8]) -> Result<usize, Error> {
        const MAX_BYTES: usize = MAX_MESSAGE_BYTES - NUMBER_BYTES;
        if message.len() > MAX_BYTES {
            let words = format!("a message of {} bytes: at most {MAX_BYTES} are allowed in a topic", message.len());
            return Err(Error::new(Code::TooLong, words));
        }
        self.look();
        let item: Arc<[u8]> = [&self.next.to_be_bytes()[..], message].concat().into();
        self.next += 1;
        for subscriber in &mut self.subscribers {
            if subscriber.is_slow && subscriber.queue.capacity() < TOPIC_QUEUE / 2 {
                continue;
            }
            let sent = timeout(TOPIC_SLOW_AFTER, subscriber.queue.send(Arc::clone(&item))).await;
            subscriber.is_slow = sent.is_err();
        }
        Ok(self.subscribers.len())
    }

    /// Ends the topic, when all have been sent what waits for them, or after some seconds.
    pub async fn close(self) {
        let Self { subscribers, stop, accepting, .. } = self;
        drop((subscribers, stop));
        // It neither panics nor is aborted.
        let _ = accepting.await;
    }

    /// Takes those who are new, and forgets those who are gone.
    fn look(&mut self) {
        while let Ok(queue) = self.new.try_recv() {
            self.subscribers.push(Subscriber { queue, is_slow: false });
        }
        self.subscribers.retain(|subscriber| !subscriber.queue.is_closed());
    }
}

async fn accept(
    mut listener: Listener,
    topic: Arc<str>,
    subscribed: UnboundedSender<Sender<Arc<[u8]>>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            // A stop, or nobody who could say so.
            _ = &mut stopped => break,
            Some(_) = serving.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(connection) if serving.len() >= MAX_SUBSCRIBERS => {
                    serving.spawn(refuse(connection, format!("{MAX_SUBSCRIBERS} subscribe already")));
                }
                Ok(connection) => _ = serving.spawn(serve(connection, Arc::clone(&topic), subscribed.clone())),
                Err(_) => break,
            },
        }
    }
    drop((listener, subscribed));
    serving.join_all().await;
}

async fn refuse(connection: Connection, words: String) {
    // Over already, when it fails.
    let _ = connection.close(NOT_HERE, &words).await;
}

/// Sends one subscriber what is published (L8.2).
async fn serve(connection: Connection, topic: Arc<str>, subscribed: UnboundedSender<Sender<Arc<[u8]>>>) {
    let Ok(Ok(asked)) = timeout(HELLO_TIMEOUT, connection.receive()).await else { return };
    if asked != topic.as_bytes() {
        let words = format!("topic: given {:?}, published here: {topic:?}", String::from_utf8_lossy(&asked));
        return refuse(connection, words).await;
    }
    let (queue, mut items) = channel(TOPIC_QUEUE);
    if subscribed.send(queue).is_ok() {
        drop(subscribed);
        tokio::select! {
            () = send_all(&connection, &mut items) => {}
            _ = connection.closed() => return,
        }
    }
    let _ = connection.close(0, "the topic has ended").await;
}

async fn send_all(connection: &Connection, items: &mut Receiver<Arc<[u8]>>) {
    while let Some(item) = items.recv().await {
        if connection.send(&*item).await.is_err() {
            return;
        }
    }
}

/// A topic of a peer's application.
pub struct Subscription {
    connection: Connection,
    /// The number that comes next, once there was one.
    next: Option<u64>,
}

/// A message of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Published {
    /// How many were published before it.
    pub number: u64,
    /// How many of those between it and the one before this subscriber was too slow for.
    pub missed: u64,
    /// The message.
    pub message: Vec<u8>,
}

impl Subscription {
    /// Subscribes to a topic of a peer's application, from now on.
    ///
    /// # Errors
    /// When the peer cannot be reached, or nobody publishes there.
    pub async fn open(node: &Node, peer: &str, port: u16, topic: &str) -> Result<Self, Error> {
        let connection = node.connect(peer, port).await?;
        connection.send(topic).await?;
        Ok(Self { connection, next: None })
    }

    /// The next message; `None`: the topic has ended. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is over otherwise: another topic is published there, or the publisher is gone.
    pub async fn next(&mut self) -> Result<Option<Published>, Error> {
        let item = match self.connection.receive().await {
            Ok(item) => item,
            Err(Error { code: Code::Closed, peer_code: Some(0), .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((number, message)) = item.split_first_chunk::<NUMBER_BYTES>() else {
            return Err(Error::malformed(format!("a message of a topic: given {} bytes, allowed: from 8", item.len())));
        };
        let number = u64::from_be_bytes(*number);
        let missed = number.saturating_sub(self.next.unwrap_or(number));
        self.next = Some(number.saturating_add(1));
        Ok(Some(Published { number, missed, message: message.to_vec() }))
    }
}

//! What an engineer who knows all this would build without Pilot: a WebSocket, JSON patches, and conversations that are kept. The
//! researcher holds what is shared; who joins is given it once, and then what changes, but for its own changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use crossbeam_channel::{Sender, unbounded};
use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::server;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

use crate::corpus::{AGENTS, Change, RESEARCHER, Shared};
use crate::hub::{Hub, Order, Said, Tell, Voice};
use crate::pipeline::Traffic;
use crate::place::Places;
use crate::tls::{CONNECT_ROUND_TRIPS, Tls, runtime};
use crate::websocket;

/// Starts the agents.
pub(crate) fn hub(places: &Places, start: &Shared, traffic: &Arc<Traffic>) -> anyhow::Result<Hub> {
    let tls = Tls::new("http/1.1")?;
    let (voice, voices) = unbounded();
    let mut tell: Vec<Tell> = Vec::new();
    for agent in 0..AGENTS.len() {
        let (orders, told) = unbounded_channel();
        tell.push(Box::new(move |order| {
            // One that has ended has said why.
            let _ = orders.send(order);
        }));
        let (places, tls, start) = (places.clone(), tls.clone(), start.clone());
        let seat = Seat { agent, voice: voice.clone(), traffic: Arc::clone(traffic) };
        std::thread::spawn(move || {
            let failed = seat.clone();
            let ended = places.enter(agent).and_then(|()| {
                runtime()?.block_on(async {
                    match agent {
                        RESEARCHER => hold(seat, tls, told, start).await,
                        _ => follow(seat, tls, told).await,
                    }
                })
            });
            if let Err(error) = ended {
                failed.say(Said::Failed(error));
            }
        });
    }
    Hub::new(tell, voices)
}

#[derive(Clone)]
struct Seat {
    agent: usize,
    voice: Sender<Voice>,
    traffic: Arc<Traffic>,
}

impl Seat {
    fn say(&self, said: Said) {
        // Nobody listens when the run is over.
        let _ = self.voice.send((self.agent, said));
    }

    fn given(&self, text: &str) {
        self.say(Said::Given { text: text.to_owned(), at: Instant::now() });
    }
}

/// A change as a message, and applied. A text's end is not to be had by a JSON patch without sending all of it.
fn message(shared: &mut Shared, change: &Change) -> String {
    let before = shared.facts.clone();
    shared.apply(change);
    match change {
        Change::Append(text) => json!({"append": text}).to_string(),
        Change::Merge(_) => json!({"patch": json_patch::diff(&before, &shared.facts)}).to_string(),
    }
}

/// Applies a message of [`message`].
fn apply(shared: &mut Shared, message: &str) -> anyhow::Result<()> {
    let mut value: Value = serde_json::from_str(message)?;
    if let Some(text) = value["append"].as_str() {
        shared.report.push_str(text);
    } else {
        let patch: json_patch::Patch = serde_json::from_value(value["patch"].take())?;
        json_patch::patch(&mut shared.facts, &patch)?;
    }
    Ok(())
}

/// What happens at the researcher's.
enum Event {
    Joined { number: u64, messages: UnboundedSender<String> },
    Said { number: u64, message: String },
}

async fn hold(seat: Seat, tls: Tls, mut told: UnboundedReceiver<Order>, mut shared: Shared) -> anyhow::Result<()> {
    let listener = TcpListener::bind(Places::address(RESEARCHER)).await?;
    let (happens, mut happened) = unbounded_channel();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok(stream) = tls.accept(&listener).await {
            number += 1;
            // One that ends is not sent to any more.
            tokio::spawn(serve(stream, number, happens.clone()));
        }
    });
    seat.say(Said::Ready);
    let mut followers: BTreeMap<u64, UnboundedSender<String>> = BTreeMap::new();
    loop {
        let (change, from) = tokio::select! {
            order = told.recv() => match order {
                Some(Order::Change(change)) => (message(&mut shared, &change), 0),
                Some(Order::Join) => continue,
                Some(Order::Finish) | None => break,
            },
            event = happened.recv() => match event.context("nobody listens")? {
                Event::Joined { number, messages } => {
                    let whole = json!({"report": shared.report, "facts": shared.facts}).to_string();
                    seat.traffic.message(whole.len());
                    let _ = messages.send(whole);
                    followers.insert(number, messages);
                    continue;
                }
                Event::Said { number, message } => {
                    apply(&mut shared, &message)?;
                    seat.given(&message);
                    (message, number)
                }
            },
        };
        for (_, messages) in followers.iter().filter(|(number, _)| **number != from) {
            seat.traffic.message(change.len());
            let _ = messages.send(change.clone());
        }
        if from == 0 {
            seat.say(Said::Made);
        }
    }
    seat.say(Said::Finished { shared, notes: json!({"tls": "1.3, AES-256-GCM", "nodelay": true}) });
    Ok(())
}

async fn serve(
    stream: server::TlsStream<TcpStream>,
    number: u64,
    happens: UnboundedSender<Event>,
) -> anyhow::Result<()> {
    let mut socket: WebSocketStream<_> = accept_async(stream).await?;
    let (messages, mut to_send) = unbounded_channel();
    happens.send(Event::Joined { number, messages })?;
    loop {
        tokio::select! {
            message = to_send.recv() => socket.send(Message::text(message.context("the hub has ended")?)).await?,
            message = websocket::next(&mut socket) => {
                let Some(message) = message? else { return Ok(()) };
                happens.send(Event::Said { number, message: String::from_utf8(message)? })?;
            }
        }
    }
}

async fn follow(seat: Seat, tls: Tls, mut told: UnboundedReceiver<Order>) -> anyhow::Result<()> {
    seat.say(Said::Ready);
    while !matches!(told.recv().await.context("nobody tells anything")?, Order::Join) {}
    let mut socket = websocket::client(tls.connect(Places::address(RESEARCHER)).await?).await?;
    // Those below, the upgrade, and what is shared.
    seat.traffic.round_trips(CONNECT_ROUND_TRIPS + 2);
    let whole = websocket::next(&mut socket).await?.context("nothing came")?;
    let mut whole: Value = serde_json::from_slice(&whole)?;
    let report = whole["report"].as_str().context("no report")?.to_owned();
    let mut shared = Shared { report, facts: whole["facts"].take() };
    seat.given(&shared.text());
    loop {
        tokio::select! {
            order = told.recv() => match order {
                Some(Order::Change(change)) => {
                    let message = message(&mut shared, &change);
                    seat.traffic.message(message.len());
                    socket.send(Message::text(message)).await?;
                    seat.say(Said::Made);
                }
                Some(Order::Join) => bail!("it has joined"),
                Some(Order::Finish) | None => break,
            },
            message = websocket::next(&mut socket) => {
                let message = String::from_utf8(message?.context("the hub has ended")?)?;
                apply(&mut shared, &message)?;
                seat.given(&message);
            }
        }
    }
    seat.say(Said::Finished { shared, notes: Value::Null });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_does_at_the_other_end_what_its_change_did_here() {
        let corpus = crate::corpus::Corpus::load().unwrap();
        let (mut here, mut there) = (corpus.start.clone(), corpus.start.clone());
        for change in corpus.contributions.iter().chain(&corpus.updates) {
            apply(&mut there, &message(&mut here, change)).unwrap();
            assert_eq!(here, there, "{change:?}");
        }
        assert!(apply(&mut there, "{}").is_err());
    }
}

//! Arms that send everything at every step, because the agent that is asked keeps nothing: over HTTP/1.1 as JSON, as A2A's
//! JSON-RPC over the same, over gRPC, over a WebSocket. Every agent serves, and keeps its connections open.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::corpus::{AGENTS, Shared};
use crate::pipeline::{Arm, Given, Step, Traffic};
use crate::place::Places;
use crate::tls::{CONNECT_ROUND_TRIPS, PATIENCE, Tls, runtime};
use crate::{grpc, http, websocket};

/// What carries it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carrier {
    Http,
    A2a,
    Grpc,
    WebSocket,
}

impl Carrier {
    fn alpn(self) -> &'static str {
        match self {
            Self::Grpc => "h2",
            Self::Http | Self::A2a | Self::WebSocket => "http/1.1",
        }
    }

    /// What is shared, as it is sent.
    fn request(self, shared: &Shared) -> Vec<u8> {
        let whole = || json!({"report": shared.report, "facts": shared.facts});
        match self {
            Self::Http | Self::WebSocket => whole().to_string().into_bytes(),
            // A2A 0.3, §7.1: `message/send`.
            Self::A2a => {
                let parts = json!([{"kind": "text", "text": shared.report}, {"kind": "data", "data": shared.facts}]);
                let message = json!({
                    "role": "user", "kind": "message", "messageId": "5f0c2c1e-8d5b-4b19-9f0c-2a7d1b6e4a10", "parts": parts,
                });
                let call = json!({"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}});
                call.to_string().into_bytes()
            }
            Self::Grpc => grpc::encode(shared),
        }
    }

    fn read(self, request: &[u8]) -> anyhow::Result<Shared> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no report");
        match self {
            Self::Http | Self::WebSocket => {
                let mut whole: Value = serde_json::from_slice(request)?;
                Ok(Shared { report: text(&whole["report"])?, facts: whole["facts"].take() })
            }
            Self::A2a => {
                let mut call: Value = serde_json::from_slice(request)?;
                let parts = &mut call["params"]["message"]["parts"];
                Ok(Shared { report: text(&parts[0]["text"])?, facts: parts[1]["data"].take() })
            }
            Self::Grpc => grpc::decode(request),
        }
    }

    /// What says that it has arrived.
    fn answer(self) -> &'static [u8] {
        match self {
            Self::Http | Self::WebSocket => br#"{"ok":true}"#,
            Self::A2a => {
                br#"{"jsonrpc":"2.0","id":1,"result":{"kind":"task","id":"1","contextId":"1","status":{"state":"completed"}}}"#
            }
            Self::Grpc => b"",
        }
    }
}

/// An agent's way to answer a request: what it is handed goes to whoever runs the pipeline.
pub(crate) type Answer = Arc<dyn Fn(Vec<u8>) -> anyhow::Result<Vec<u8>> + Send + Sync>;

enum Connection {
    Http(http::Client),
    Grpc(grpc::Client),
    WebSocket(Box<websocket::Client>),
}

impl Connection {
    async fn open(carrier: Carrier, tls: &Tls, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = tls.connect(to).await?;
        Ok(match carrier {
            Carrier::Http | Carrier::A2a => Self::Http(http::Client::new(stream).await?),
            Carrier::Grpc => Self::Grpc(grpc::Client::new(stream).await?),
            Carrier::WebSocket => Self::WebSocket(Box::new(websocket::client(stream).await?)),
        })
    }

    async fn ask(&mut self, request: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Http(client) => client.post("/", request).await,
            Self::Grpc(client) => client.ask(request).await,
            Self::WebSocket(client) => websocket::ask(client, request).await,
        }
    }
}

/// The agents: what to send to whom, what arrived, and that an answer came.
pub(crate) struct Resend {
    carrier: Carrier,
    orders: Vec<UnboundedSender<(usize, Vec<u8>)>>,
    arrived: Receiver<(usize, Shared)>,
    answered: Receiver<anyhow::Result<()>>,
    states: Vec<Shared>,
}

impl Resend {
    pub(crate) fn new(
        carrier: Carrier,
        places: &Places,
        start: &Shared,
        traffic: &Arc<Traffic>,
    ) -> anyhow::Result<Self> {
        let tls = Tls::new(carrier.alpn())?;
        let (arrives, arrived) = unbounded();
        let (answers, answered) = unbounded();
        let mut orders = Vec::new();
        for (agent, name) in AGENTS.into_iter().enumerate() {
            let (order, ordered) = unbounded_channel();
            orders.push(order);
            let (places, tls, traffic) = (places.clone(), tls.clone(), Arc::clone(traffic));
            let (arrives, answers): (Sender<_>, Sender<_>) = (arrives.clone(), answers.clone());
            let take = Arc::new(move |request: Vec<u8>| {
                // Nobody listens when the run is over.
                let _ = arrives.send((agent, carrier.read(&request)?));
                Ok(carrier.answer().to_vec())
            });
            std::thread::spawn(move || {
                let ended = places
                    .enter(agent)
                    .and_then(|()| runtime()?.block_on(run(carrier, agent, tls, take, ordered, &traffic, &answers)));
                if let Err(error) = ended {
                    let _ = answers.send(Err(error.context(name)));
                }
            });
        }
        let arm = Self { carrier, orders, arrived, answered, states: vec![start.clone(); AGENTS.len()] };
        // Each says that it listens.
        (0..AGENTS.len()).try_for_each(|_| arm.answered()).map(|()| arm)
    }

    fn answered(&self) -> anyhow::Result<()> {
        self.answered.recv_timeout(PATIENCE).context("an agent says nothing")?
    }
}

async fn run(
    carrier: Carrier,
    agent: usize,
    tls: Tls,
    take: Answer,
    mut orders: UnboundedReceiver<(usize, Vec<u8>)>,
    traffic: &Traffic,
    answers: &Sender<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(Places::address(agent)).await?;
    let serving = tls.clone();
    tokio::spawn(async move {
        while let Ok(stream) = serving.accept(&listener).await {
            let take = Arc::clone(&take);
            // One that ends with an error is noticed by who asked.
            tokio::spawn(async move {
                match carrier {
                    Carrier::Http | Carrier::A2a => http::serve(stream, take).await,
                    Carrier::Grpc => grpc::serve(stream, take).await,
                    Carrier::WebSocket => websocket::serve(stream, take).await,
                }
            });
        }
    });
    answers.send(Ok(()))?;
    let mut connections: BTreeMap<usize, Connection> = BTreeMap::new();
    while let Some((to, request)) = orders.recv().await {
        let connection = match connections.entry(to) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(none) => {
                traffic.round_trips(CONNECT_ROUND_TRIPS + u64::from(carrier == Carrier::WebSocket));
                none.insert(Connection::open(carrier, &tls, Places::address(to)).await?)
            }
        };
        traffic.message(request.len());
        let answer = connection.ask(request).await?;
        traffic.message(answer.len());
        traffic.round_trips(1);
        answers.send(Ok(()))?;
    }
    Ok(())
}

impl Arm for Resend {
    fn hand_over(&mut self, step: &Step<'_>) -> anyhow::Result<Vec<Given>> {
        self.states[step.from].apply(step.change);
        let mut given = Vec::new();
        for to in step.to {
            let request = self.carrier.request(&self.states[step.from]);
            self.orders[step.from].send((*to, request)).context("the agent has ended")?;
            self.answered()?;
            let (agent, shared) = self.arrived.recv_timeout(PATIENCE).context("nothing arrived")?;
            given.push(Given { agent, text: shared.text() });
            self.states[agent] = shared;
        }
        Ok(given)
    }

    fn finish(self: Box<Self>) -> anyhow::Result<(Vec<Shared>, Value)> {
        Ok((self.states, json!({"tls": "1.3, AES-256-GCM", "nodelay": true, "keep_alive": true})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_survives_every_envelope() {
        let shared = Shared { report: "a \"quoted\"\nline".into(), facts: json!({"n": [1, null]}) };
        for carrier in [Carrier::Http, Carrier::A2a, Carrier::Grpc, Carrier::WebSocket] {
            let request = carrier.request(&shared);
            assert_eq!(carrier.read(&request).unwrap(), shared, "{carrier:?}");
            assert!(carrier.read(b"[").is_err(), "{carrier:?}");
        }
        let call: Value = serde_json::from_slice(&Carrier::A2a.request(&shared)).unwrap();
        assert_eq!(call["method"], "message/send");
    }
}

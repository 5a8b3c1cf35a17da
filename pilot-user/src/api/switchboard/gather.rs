//! What is asked of all workers together, and of the control thread: one answer of all their parts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::super::limits::MAX_LISTED;
use super::super::outbox::{Outbox, outbox};
use super::super::protocol::ToApplication;
use super::{ClientId, Switchboard, ToWorker};

/// What all workers are asked together: the last one to say its part answers.
pub(crate) struct Gather {
    pub(crate) client: ClientId,
    pub(crate) what: Inspection,
    request: u32,
    outbox: Outbox,
    /// Of the whole node, which no worker's part has.
    whole: Value,
    left: AtomicUsize,
    parts: Mutex<Vec<Value>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Inspection {
    Peers,
    Connections,
    Stats,
}

impl Switchboard {
    /// Has all workers, and the control thread, say what they know, for one answer.
    pub(super) fn gather(&self, client: ClientId, outbox: &Outbox, request: u32, what: Inspection) {
        let mut whole = json!({});
        let mut left = self.workers.len();
        if what == Inspection::Stats {
            whole["datapath"] = serde_json::to_value(&*self.control.datapath()).unwrap_or_default();
            whole["workers"] = self.workers.len().into();
            whole["applications"] = self.applications().into();
            left += 1;
        }
        let (outbox, left, parts) = (outbox.clone(), AtomicUsize::new(left), Mutex::default());
        let gather = Arc::new(Gather { client, what, request, outbox, whole, left, parts });
        for worker in 0..self.workers.len() {
            self.tell(worker, ToWorker::Inspect(Arc::clone(&gather)));
        }
        if what == Inspection::Stats {
            self.control.xdp_counters(move |verdicts| gather.say(json!({"xdp": verdicts})));
        }
    }

    /// What `stats` and `peers` are answered, for who has no session. `None`: the node stops.
    pub(crate) async fn inspect(&self) -> Option<[Value; 2]> {
        let (outbox, mut delivery) = outbox(Arc::clone(&self.doorbells));
        // No application asks, so none of its connections is told.
        let nobody = ClientId(u64::MAX);
        self.gather(nobody, &outbox, 0, Inspection::Stats);
        self.gather(nobody, &outbox, 1, Inspection::Peers);
        let mut answers = [None, None];
        while answers.iter().any(Option::is_none) {
            if let ToApplication::Result { request, value } = delivery.next().await? {
                answers[request as usize % 2] = Some(value);
            }
        }
        let [stats, peers] = answers;
        Some([stats?, peers?])
    }
}

impl Gather {
    /// A worker's part: a list, the beginning of one and how long it is, or numbers that add up.
    pub(crate) fn say(&self, part: Value) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.push(part);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let value = match self.what {
                Inspection::Peers => json!({"peers": joined(&mut parts, "name")}),
                Inspection::Connections => {
                    let all = parts.iter().filter_map(|part| part["all"].as_u64()).sum::<u64>();
                    let mut lists = parts.iter_mut().map(|part| part["listed"].take()).collect();
                    let mut listed = joined(&mut lists, "peer");
                    listed.truncate(MAX_LISTED);
                    json!({"more": all - listed.len() as u64, "connections": listed})
                }
                Inspection::Stats => {
                    let mut all = parts.drain(..).fold(json!({}), sum);
                    let (all_members, whole) = (all.as_object_mut(), self.whole.as_object());
                    all_members.into_iter().for_each(|all| all.extend(whole.cloned().unwrap_or_default()));
                    all
                }
            };
            self.outbox.put(ToApplication::Result { request: self.request, value });
        }
    }
}

/// All lists as one, in the order of a member, and of lanes.
fn joined(parts: &mut Vec<Value>, by: &str) -> Vec<Value> {
    let lists = parts.drain(..).filter_map(|part| if let Value::Array(list) = part { Some(list) } else { None });
    let mut all: Vec<Value> = lists.flatten().collect();
    all.sort_by_cached_key(|value| (value[by].as_str().map(str::to_owned), value["lane"].as_u64()));
    all
}

/// Adds numbers, member by member.
fn sum(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Object(mut one), Value::Object(other)) => {
            for (name, value) in other {
                let before = one.remove(&name).unwrap_or(Value::Null);
                one.insert(name, sum(before, value));
            }
            Value::Object(one)
        }
        (Value::Null, other) => other,
        (one, other) => (one.as_u64().unwrap_or(0) + other.as_u64().unwrap_or(0)).into(),
    }
}

/// Numbers with their names, as JSON.
pub(crate) fn numbers<'a>(all: impl IntoIterator<Item = (&'a str, u64)>) -> Value {
    Value::Object(all.into_iter().map(|(name, number)| (name.to_owned(), number.into())).collect::<Map<_, _>>())
}

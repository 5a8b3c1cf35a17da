//! Random documents and changes: few names and small values, so that changes meet.

use pilot_tests::random::Random;
use pilot_user::context::{Change, Kind};
use serde_json::{Map, Value, json};

const NAMES: [&str; 5] = ["a", "b", "c", "~/", ""];

pub(crate) fn value(random: &mut Random, depth: u64) -> Value {
    match random.below(if depth == 0 { 6 } else { 9 }) {
        0 => Value::Null,
        1 => json!(random.below(4)),
        2 => json!("text"),
        3 => json!(random.next() as f64 / 7e18),
        4 => json!(-(random.below(1 << 40) as f64) * 1e-30),
        5 => json!(random.below(2) == 0),
        6 => Value::Array((0..random.below(4)).map(|_| value(random, depth - 1)).collect()),
        _ => {
            let members = (0..random.below(4)).map(|_| (name(random), value(random, depth - 1)));
            Value::Object(members.collect::<Map<_, _>>())
        }
    }
}

fn name(random: &mut Random) -> String {
    NAMES[random.below(5) as usize].to_owned()
}

pub(crate) fn pointer(random: &mut Random) -> String {
    let token = |random: &mut Random| match random.below(6) {
        0 => random.below(3).to_string(),
        1 => "-".to_owned(),
        _ => name(random).replace('~', "~0").replace('/', "~1"),
    };
    (0..random.below(4)).map(|_| format!("/{}", token(random))).collect()
}

fn patch(random: &mut Random) -> Value {
    let operation = |random: &mut Random| match random.below(8) {
        0 => json!({"op": "remove", "path": pointer(random)}),
        1 => json!({"op": "replace", "path": pointer(random), "value": value(random, 2)}),
        2 => json!({"op": "move", "from": pointer(random), "path": pointer(random)}),
        3 => json!({"op": "copy", "from": pointer(random), "path": pointer(random)}),
        4 => json!({"op": "test", "path": pointer(random), "value": value(random, 1)}),
        _ => json!({"op": "add", "path": pointer(random), "value": value(random, 2)}),
    };
    Value::Array((0..1 + random.below(3)).map(|_| operation(random)).collect())
}

/// Some of them do not fit.
pub(crate) fn change(random: &mut Random, kind: Kind) -> Change {
    let rare = random.below(16);
    // Beyond what goes in a message.
    let long = || vec![b'x'; 66_000];
    let word = |random: &mut Random| format!("word {} é. ", random.below(1000)).into_bytes();
    match kind {
        Kind::Json if rare == 0 => Change::Replace(value(random, 3).to_string().into_bytes()),
        Kind::Json if rare < 8 => Change::Merge(value(random, 3)),
        Kind::Json => Change::patch(patch(random).to_string().as_bytes()).unwrap(),
        Kind::Text if rare == 0 => Change::Replace(word(random)),
        Kind::Text if rare < 8 => Change::Edit {
            offset: random.of_any_size(7),
            removed: random.below(8),
            inserted: String::from_utf8(word(random)).unwrap(),
        },
        Kind::Bytes if rare == 0 => Change::Replace(long()),
        Kind::Bytes if rare < 8 => Change::Write { offset: random.of_any_size(7), bytes: word(random) },
        Kind::Text | Kind::Log | Kind::Bytes if random.below(40) == 0 => Change::Append(long()),
        // Not of this kind.
        Kind::Log if rare == 0 => Change::Replace(word(random)),
        Kind::Text | Kind::Log | Kind::Bytes => Change::Append(word(random)),
    }
}

//! Which part of a JSON document a change touches, what is there now, and putting it in place: what followers are sent that
//! want the latest values, or a part of the document (`docs/context.md` C3.6, C3.7).
//!
//! What a change touches is named by JSON pointers (RFC 6901) to the outermost places that may differ after it. None leads
//! into an array, whose indexes mean other elements after the next insertion: the array is touched as a whole.

use std::collections::BTreeSet;

use json_patch::PatchOperation;
use serde_json::{Map, Value};

use super::change::Change;

/// Where a document may differ after a merge patch to what it is `before`.
pub(super) fn touched_by_merge(patch: &Value, before: &Value) -> Vec<String> {
    let mut pointers = Vec::new();
    leaves(patch, Some(before), &mut String::new(), &mut pointers);
    pointers
}

/// Where a document may differ after any other change, which made it what it is `after`.
pub(super) fn touched(change: &Change, after: &Value) -> Vec<String> {
    let Change::Patch(patch) = change else { return vec![String::new()] };
    let mut pointers = Vec::new();
    for operation in patch.iter() {
        match operation {
            PatchOperation::Test(_) => continue,
            PatchOperation::Move(moved) => pointers.push(outside_arrays(after, moved.from.as_str())),
            _ => {}
        }
        pointers.push(outside_arrays(after, operation.path().as_str()));
    }
    pointers
}

/// The leaves of a merge patch: of an object that it goes into, what it does not name stays as it is. What is something
/// else there is replaced by an object, as a whole.
fn leaves(patch: &Value, before: Option<&Value>, at: &mut String, out: &mut Vec<String>) {
    let members = patch.as_object().filter(|members| !members.is_empty());
    let Some(members) = members.filter(|_| before.is_none_or(Value::is_object)) else { return out.push(at.clone()) };
    for (key, value) in members {
        let length = at.len();
        at.push('/');
        at.push_str(&key.replace('~', "~0").replace('/', "~1"));
        leaves(value, before.and_then(|before| before.get(key)), at, out);
        at.truncate(length);
    }
}

/// The pointer, or the first array on its way.
fn outside_arrays(document: &Value, pointer: &str) -> String {
    let mut at = document;
    for (end, _) in pointer.match_indices('/') {
        if at.is_array() {
            return pointer[..end].to_owned();
        }
        let token = pointer[end + 1..].split('/').next().unwrap_or_default();
        match at.get(unescape(token)) {
            Some(next) => at = next,
            // Not there any more: it was removed, or something above it was, which is touched as well.
            None => break,
        }
    }
    pointer.to_owned()
}

/// What followers of the part at `filter` (all of it: "") need to come from any version since which only `touched` was
/// touched to the document as it is; `None`: nothing.
pub(super) fn values<'a>(
    document: &Value,
    filter: &str,
    touched: impl Iterator<Item = &'a str>,
) -> Option<Vec<(String, Option<Value>)>> {
    let relative = touched.filter_map(|pointer| {
        // Above the part, or the part itself: all of it may differ.
        if is_within(filter, pointer) {
            Some("")
        } else {
            pointer.strip_prefix(filter).filter(|_| is_within(pointer, filter))
        }
    });
    let all: BTreeSet<&str> = relative.collect();
    let is_inner = |pointer: &str| {
        let above = pointer.match_indices('/').map(|(end, _)| &pointer[..end]);
        above.into_iter().any(|above| all.contains(above))
    };
    let part = document.pointer(filter);
    let now = |pointer: &str| match part {
        // What is not there is null (C3.6).
        None => pointer.is_empty().then_some(Value::Null),
        Some(part) => part.pointer(pointer).cloned(),
    };
    let outer = all.iter().filter(|pointer| !is_inner(pointer));
    let values: Vec<_> = outer.map(|pointer| ((*pointer).to_owned(), now(pointer))).collect();
    (!values.is_empty()).then_some(values)
}

/// Whether a pointer is at or below another.
fn is_within(pointer: &str, above: &str) -> bool {
    pointer.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// C4.4: puts a value at a pointer, or takes away what is there. What is not an object on the way becomes one.
pub(super) fn put(document: &mut Value, pointer: &str, value: Option<Value>) {
    let Some((parents, last)) = pointer.rsplit_once('/') else {
        *document = value.unwrap_or_default();
        return;
    };
    let mut at = document;
    for token in parents.split('/').skip(1) {
        at = object(at).entry(unescape(token)).or_insert(Value::Null);
    }
    match value {
        Some(value) => _ = object(at).insert(unescape(last), value),
        None => _ = object(at).remove(&unescape(last)),
    }
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object above")
}

fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// Whether this is a JSON pointer.
pub(super) fn is_pointer(text: &str) -> bool {
    let escapes = text.replace("~0", "").replace("~1", "");
    (text.is_empty() || text.starts_with('/')) && !escapes.contains('~')
}

/// How many objects and arrays lie within each other.
pub(super) fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

//! Documents and changes: what each kind takes and refuses, and that a refusal leaves the document as it was.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

use pilot_user::context::limits::{MAX_DOCUMENT_BYTES, MAX_JSON_DEPTH};
use pilot_user::context::{Change, ChangeError, Document, Kind};
use proptest::prelude::*;
use serde_json::{Value, json};

fn document(kind: Kind, text: &str) -> Document {
    Document::decode(kind, text.as_bytes()).unwrap()
}

fn encoded(document: &Document) -> Vec<u8> {
    let mut out = vec![];
    document.encode(&mut out);
    out
}

fn text(document: &Document) -> String {
    String::from_utf8(encoded(document)).unwrap()
}

/// Applies a change as it is sent.
fn apply(document: &mut Document, change: &Change) -> Result<(), ChangeError> {
    let sent = change.encode();
    document.apply(&Change::decode(&sent)?, sent.len())
}

/// C4.1, C4.2: it is refused with these words, and nothing has changed.
#[track_caller]
fn refused(document: &mut Document, change: &Change, words: &str) {
    let before = encoded(document);
    let error = apply(document, change).unwrap_err().to_string();
    assert!(error.contains(words), "{words:?} is not in {error:?}");
    assert_eq!(encoded(document), before, "as it was");
}

/// RFC 7396 appendix A.
#[test]
fn merge_patches_of_the_standard() {
    for (before, patch, after) in [
        (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
        (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
        (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
        (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
        (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
        (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
        (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
        (r#"{"a":"foo"}"#, "null", "null"),
        (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
        (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
        ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
        ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
    ] {
        let mut it = document(Kind::Json, before);
        apply(&mut it, &Change::merge(patch.as_bytes()).unwrap()).unwrap();
        assert_eq!(text(&it), after, "{before} + {patch}");
    }
}

/// C4.1: RFC 6902, whole or not at all.
#[test]
fn json_patches_are_whole_or_nothing() {
    let patch = |json: Value| Change::patch(json.to_string().as_bytes()).unwrap();
    let mut it = document(Kind::Json, r#"{"tasks":["a"],"n":47}"#);
    let good = json!([
        {"op": "test", "path": "/n", "value": 47},
        {"op": "replace", "path": "/n", "value": 48},
        {"op": "add", "path": "/tasks/-", "value": "b"},
        {"op": "move", "from": "/tasks/0", "path": "/first"},
    ]);
    apply(&mut it, &patch(good)).unwrap();
    assert_eq!(text(&it), r#"{"first":"a","n":48,"tasks":["b"]}"#);
    let half = json!([{"op": "remove", "path": "/n"}, {"op": "remove", "path": "/none"}]);
    refused(&mut it, &patch(half), "'/1' failed at path '/none'");
    let failed = json!([{"op": "remove", "path": "/n"}, {"op": "test", "path": "/first", "value": 1}]);
    refused(&mut it, &patch(failed), "did not match");
    // A list copied into itself doubles each time.
    let double = json!({"op": "copy", "from": "/tasks", "path": "/tasks/-"});
    let bomb: Vec<_> = std::iter::repeat_n(double, 60).collect();
    refused(&mut it, &patch(Value::from(bomb)), "would have more than");
    for malformed in
        ["{", r#"{"op":"add"}"#, r#"[{"op":"add","path":"x","value":1}]"#, r#"[{"op":"grow","path":"/x"}]"#]
    {
        let error = Change::patch(malformed.as_bytes()).unwrap_err();
        assert!(matches!(error, ChangeError::Malformed(_)), "{malformed}: {error}");
    }
}

#[test]
fn texts_are_edited_between_characters() {
    let mut it = document(Kind::Text, "aé!");
    let edit = |offset, removed, inserted: &str| Change::Edit { offset, removed, inserted: inserted.into() };
    apply(&mut it, &edit(1, 2, "ou")).unwrap();
    apply(&mut it, &edit(4, 0, "?")).unwrap();
    apply(&mut it, &Change::Append("é".into())).unwrap();
    assert_eq!(text(&it), "aou!?é");
    refused(&mut it, &edit(6, 1, ""), "cut a character in two");
    refused(&mut it, &edit(7, 1, ""), "the text has 7 bytes");
    refused(&mut it, &edit((1 << 62) - 1, (1 << 62) - 1, ""), "the text has 7 bytes");
    refused(&mut it, &Change::Append(vec![0xff]), "not UTF-8");
    refused(&mut it, &Change::Replace(vec![0xff]), "not UTF-8");
    apply(&mut it, &Change::Replace("new".into())).unwrap();
    assert_eq!(text(&it), "new");
}

#[test]
fn logs_only_grow() {
    let mut it = document(Kind::Log, "one\n");
    apply(&mut it, &Change::Append("two\n".into())).unwrap();
    assert_eq!(text(&it), "one\ntwo\n");
    refused(&mut it, &Change::Replace("".into()), "replace is not for a log document; allowed: append");
    refused(&mut it, &Change::Edit { offset: 0, removed: 1, inserted: "".into() }, "edit is not for a log");
}

#[test]
fn bytes_are_written_within_and_at_the_end() {
    let mut it = document(Kind::Bytes, "0123");
    let write = |offset, bytes: &[u8]| Change::Write { offset, bytes: bytes.to_vec() };
    apply(&mut it, &write(2, b"xyz")).unwrap();
    apply(&mut it, &write(5, b"\xff")).unwrap();
    assert_eq!(encoded(&it), b"01xyz\xff");
    refused(&mut it, &write(7, b""), "has 6 bytes");
    refused(&mut it, &Change::merge(b"{}").unwrap(), "allowed: replace, append, write");
}

/// C1.2: of every kind, by every operation that can make it longer.
#[test]
fn no_document_outgrows_its_limits() {
    let most = "x".repeat(MAX_DOCUMENT_BYTES - 2);
    for kind in [Kind::Text, Kind::Log, Kind::Bytes] {
        let mut it = document(kind, &most);
        apply(&mut it, &Change::Append("12".into())).unwrap();
        refused(&mut it, &Change::Append("3".into()), "would have more than 16777216 bytes");
    }
    let mut it = document(Kind::Bytes, &most);
    refused(&mut it, &Change::Write { offset: 16_777_200, bytes: vec![0; 17] }, "16777216");
    let mut it = document(Kind::Json, &format!("{{\"a\":\"{}\"}}", &most[..MAX_DOCUMENT_BYTES - 20]));
    refused(&mut it, &Change::merge(br#"{"b":"0123456789"}"#).unwrap(), "16777216");
    let add = json!([{"op": "add", "path": "/b", "value": "0123456789"}]).to_string();
    refused(&mut it, &Change::patch(add.as_bytes()).unwrap(), "16777216");
    // 1e9 is 1000000000.0 as it is sent.
    let numbers = |count: usize| format!("[{}]", vec!["1e9"; count].join(","));
    let it_fits = document(Kind::Json, &numbers(1_000_000));
    assert_eq!(it_fits.bound(), 13 * 1_000_000 + 1);
    assert_eq!(Document::decode(Kind::Json, numbers(1_500_000).as_bytes()), Err(ChangeError::TooLong));
    // What takes no more room is still taken.
    apply(&mut it, &Change::merge(br#"{"a":"short again"}"#).unwrap()).unwrap();
    assert_eq!(it.bound(), r#"{"a":"short again"}"#.len());

    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(Document::decode(Kind::Json, nested(MAX_JSON_DEPTH).as_bytes()).is_ok());
    assert_eq!(Document::decode(Kind::Json, nested(MAX_JSON_DEPTH + 1).as_bytes()), Err(ChangeError::TooDeep));
    let mut it = document(Kind::Json, &format!("{{\"a\":{}}}", nested(MAX_JSON_DEPTH - 1)));
    let path = format!("/a{}/-", "/0".repeat(MAX_JSON_DEPTH - 2));
    let deeper = json!([{"op": "add", "path": path, "value": []}]).to_string();
    refused(&mut it, &Change::patch(deeper.as_bytes()).unwrap(), "64 deep");
    let deep_merge = (0..=MAX_JSON_DEPTH).fold("1".to_owned(), |inner, _| format!("{{\"x\":{inner}}}"));
    refused(&mut it, &Change::merge(deep_merge.as_bytes()).unwrap(), "64 deep");
}

#[test]
fn what_is_no_change_is_refused() {
    for (bad, words) in [
        (&b""[..], "empty"),
        (b"\x00", "operation 0"),
        (b"\x08", "operation 8"),
        (b"\x02{", "malformed"),
        (b"\x05\x40", "too early"),
        (b"\x05\x00\x00\xff", "UTF-8"),
        (b"\x07[[1]]", "pairs"),
        (b"\x07[[\"\",1,2]]", "pairs"),
    ] {
        let error = Change::decode(bad).unwrap_err().to_string();
        assert!(error.contains(words), "{bad:?}: {error}");
    }
    let mut it = document(Kind::Json, "{}");
    let deep = Change::Values(vec![("/a".repeat(MAX_JSON_DEPTH), Some(json!([])))]);
    refused(&mut it, &deep, "64 deep");
    refused(&mut it, &Change::Values(vec![("a".into(), None)]), "no JSON pointer");
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    /// C1.2: equal documents are equal bytes, whatever numbers are in them; and so are copies that took the same change.
    #[test]
    fn documents_and_changes_are_the_same_at_both_ends(value in json_value(), patch in json_value()) {
        let mut owner = document(Kind::Json, &value.to_string());
        let mut copy = Document::decode(Kind::Json, &encoded(&owner)).unwrap();
        prop_assert_eq!(encoded(&owner), encoded(&copy));
        let merge = Change::Merge(patch);
        let sent = merge.encode();
        owner.apply(&merge, sent.len()).unwrap();
        copy.apply(&Change::decode(&sent).unwrap(), sent.len()).unwrap();
        prop_assert_eq!(encoded(&owner), encoded(&copy));
        prop_assert_eq!(owner.hash(), copy.hash());
        prop_assert!(owner.bound() >= encoded(&owner).len());
    }

    /// Edits are those of `str`, and what is no edit changes nothing.
    #[test]
    fn edits_are_range_replacements(start in ".{0,20}", offset in 0u64..24, removed in 0u64..24, inserted in ".{0,5}") {
        let mut it = document(Kind::Text, &start);
        let range = offset as usize..(offset + removed) as usize;
        let fits = start.get(range.clone()).is_some();
        let mut wanted = start.clone();
        if fits {
            wanted.replace_range(range, &inserted);
        }
        prop_assert_eq!(apply(&mut it, &Change::Edit { offset, removed, inserted }).is_ok(), fits);
        prop_assert_eq!(text(&it), wanted);
    }

    #[test]
    fn no_change_panics(bytes in prop::collection::vec(any::<u8>(), 0..40), operation in 0u8..9, kind in 1u8..5) {
        let mut it = Document::empty(Kind::from_code(kind).unwrap());
        if let Ok(change) = Change::decode(&[&[operation][..], &bytes].concat()) {
            let before = encoded(&it);
            if it.apply(&change, bytes.len() + 1).is_err() {
                prop_assert_eq!(encoded(&it), before);
            }
            prop_assert!(it.bound() >= encoded(&it).len());
        }
    }
}

//! `cargo xtask tidy`: what the compiler and clippy do not look at. File sizes, which crate may depend on which, and that
//! every requirement of `docs/wire.md`, `docs/context.md` and `docs/local-protocol.md` is kept somewhere and tested somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Lines of code, without tests, comments and blank lines, beyond which a file holds more than one concept.
const LONG: usize = 400;
/// Lines of code, counted as for [`LONG`], that no file may have.
const TOO_LONG: usize = 600;

/// Which packages a package may depend on (docs: ARCHITECTURE.md). Those of the folders `tests` and `benches` may use all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("pilot-common", &[]),
    ("pilot-ebpf", &["pilot-common"]),
    ("pilot-engine", &["pilot-common"]),
    ("pilot-xsk", &["pilot-common"]),
    ("pilot-user", &["pilot-common", "pilot-engine", "pilot-xsk"]),
    ("xtask", &[]),
];

/// Documents of numbered requirements, and the letter before the numbers.
const SPECIFICATIONS: &[(&str, char)] =
    &[("docs/wire.md", 'W'), ("docs/context.md", 'C'), ("docs/local-protocol.md", 'L')];

pub(crate) fn run() -> Result<()> {
    let root = crate::workspace();
    let mut complaints = dependencies(&metadata(&root)?);
    let files = sources(&root)?;
    for (path, text) in &files {
        match lines_of_code(text) {
            lines if lines > TOO_LONG => complaints.push(format!("{path}: {lines} lines of code, allowed: {TOO_LONG}")),
            lines if lines > LONG => eprintln!("warning: {path}: {lines} lines of code, aim under {LONG}"),
            _ => {}
        }
    }
    let mut count = 0;
    for (name, letter) in SPECIFICATIONS {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        complaints.extend(requirements((name, *letter), &text, &files));
        count += demanded(&text, *letter).len();
    }
    complaints.iter().for_each(|complaint| eprintln!("error: {complaint}"));
    ensure!(complaints.is_empty(), "{} complaints", complaints.len());
    println!("{} files, {count} requirements: tidy", files.len());
    Ok(())
}

/// The Rust files that git knows, by their path from the root.
fn sources(root: &Path) -> Result<BTreeMap<String, String>> {
    let output = Command::new("git").current_dir(root).args(["ls-files", "-z", "*.rs"]).output();
    let output = output.context("cannot run git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout)?;
    // One that is deleted and not yet committed is no file any more.
    let present = names.split_terminator('\0').filter(|name| root.join(name).exists());
    let read = |name: &str| {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        Ok((name.to_owned(), text))
    };
    present.map(read).collect()
}

fn metadata(root: &Path) -> Result<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo.current_dir(root).args(["metadata", "--no-deps", "--format-version=1"]).output();
    let output = output.context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What is wrong with who depends on whom.
fn dependencies(metadata: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let root = text(&metadata["workspace_root"]);
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: BTreeSet<String> = packages.iter().map(|package| text(&package["name"])).collect();
    for package in packages {
        let (name, manifest) = (text(&package["name"]), text(&package["manifest_path"]));
        let folder = manifest.strip_prefix(&root).unwrap_or(&manifest).trim_start_matches('/');
        if folder.starts_with("tests/") || folder.starts_with("benches/") {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(user, _)| *user == name) else {
            complaints.push(format!("{name} is in no layer: say in xtask/src/tidy.rs what it may depend on"));
            continue;
        };
        let used = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        for used in used.iter().map(|used| text(&used["name"])) {
            if names.contains(&used) && !allowed.contains(&used.as_str()) {
                complaints.push(format!("{name} depends on {used}; allowed: {}", allowed.join(", ")));
            }
        }
    }
    complaints
}

/// Lines that are neither blank, nor comment, nor of the tests at the file's end.
fn lines_of_code(text: &str) -> usize {
    let code = |line: &&str| !line.is_empty() && !line.starts_with("//");
    split(text).0.lines().map(str::trim).filter(code).count()
}

/// The file's own code, and the module of tests at its end.
fn split(text: &str) -> (&str, &str) {
    text.find("\n#[cfg(test)]\nmod ").map_or((text, ""), |at| text.split_at(at))
}

/// What is wrong with the citations of requirements.
fn requirements((name, letter): (&str, char), text: &str, files: &BTreeMap<String, String>) -> Vec<String> {
    let wanted = demanded(text, letter);
    let (mut in_code, mut in_tests) = (BTreeSet::new(), BTreeSet::new());
    let mut complaints = Vec::new();
    let known = numbers(text, letter);
    for (path, text) in files.iter().filter(|(path, _)| !path.starts_with("xtask/")) {
        let (code, tests) = if is_test(path) { ("", text.as_str()) } else { split(text) };
        in_code.extend(numbers(code, letter));
        in_tests.extend(numbers(tests, letter));
        let unknown = numbers(text, letter).into_iter().filter(|number| !known.contains(number));
        complaints.extend(unknown.map(|number| format!("{path} cites {number}, which {name} does not have")));
    }
    for (cited, complaint) in [(&in_code, "no code cites it"), (&in_tests, "no test cites it")] {
        let uncited = wanted.iter().filter(|number| !cited.contains(*number));
        complaints.extend(uncited.map(|number| format!("{name} {number}: {complaint}")));
    }
    complaints
}

/// Whether all of a file is test code. The simulator counts as such.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.starts_with("tests/") || path.contains("/tests/")
}

/// The requirements that are kept today: those neither marked *(not yet)*, nor in a section that is. One of which only a
/// part is not yet kept is marked `*(that part: not yet)*`.
fn demanded(text: &str, letter: char) -> Vec<&str> {
    let beginning = format!("- **{letter}");
    let mut demanded = Vec::new();
    let mut section_waits = false;
    let mut requirement: Option<&str> = None;
    let mut waits = false;
    for line in text.lines().chain(["#"]) {
        let begins = line.starts_with(&beginning);
        if begins || line.starts_with('#') || line.is_empty() {
            demanded.extend(requirement.take().filter(|_| !waits && !section_waits));
        }
        if line.starts_with('#') {
            section_waits = line.contains("*(not yet");
        }
        if begins {
            requirement = line.strip_prefix("- **").and_then(|rest| rest.split("**").next());
            waits = false;
        }
        waits |= line.contains("*(not yet");
    }
    demanded
}

/// The numbers of requirements in a text: the letter, digits, a point, digits.
fn numbers(text: &str, letter: char) -> BTreeSet<&str> {
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number = |(at, _): (usize, &str)| {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        let major = digits(&text[at + 1..]);
        let minor = text[at + 1 + major..].strip_prefix('.').map(digits)?;
        (major > 0 && minor > 0).then(|| &text[at..at + major + minor + 2])
    };
    text.match_indices(letter).filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WIRE: &str = "\
- **W1.1** Kept.
- **W1.2** Waits,
  for long. *(not yet: why)*
- **W1.10** Kept but for *(a part, W1.2: not yet)*

## 2. Later *(not yet)*

- **W2.1** Waits.

## 3. Now

- **W3.1** Kept,
";

    #[test]
    fn requirements_that_wait_are_not_demanded() {
        assert_eq!(demanded(WIRE, 'W'), ["W1.1", "W1.10", "W3.1"]);
    }

    #[test]
    fn every_requirement_is_cited_in_code_and_in_a_test_and_exists() {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let code = "/// W1.1, wire.md W1.10.\nfn a() {}\n\n#[cfg(test)]\nmod tests {\n// W3.1 W1.10\n}\n";
        let files = BTreeMap::from([file("a/src/lib.rs", code), file("a/tests/a.rs", "// W1.1 xW9.9 W7 W9.2")]);
        assert_eq!(
            requirements(("docs/wire.md", 'W'), WIRE, &files),
            ["a/tests/a.rs cites W9.2, which docs/wire.md does not have", "docs/wire.md W3.1: no code cites it"]
        );
    }

    #[test]
    fn tests_comments_and_blank_lines_are_no_code() {
        assert_eq!(lines_of_code("//! a\n\nfn a() {\n    // why\n}\n#[cfg(test)]\nmod tests {\n}\n"), 2);
    }

    #[test]
    fn dependencies_point_one_way() {
        let package = |name: &str, folder: &str, uses: &[&str]| {
            let uses: Vec<Value> = uses.iter().map(|name| json!({"name": name})).collect();
            json!({"name": name, "manifest_path": format!("/root/{folder}/Cargo.toml"), "dependencies": uses})
        };
        let metadata = json!({"workspace_root": "/root", "packages": [
            package("pilot-common", "pilot-common", &["zerocopy"]),
            package("pilot-engine", "pilot-user/engine", &["pilot-common", "pilot-user"]),
            package("pilot-user", "pilot-user", &["pilot-engine"]),
            package("pilot-new", "pilot-new", &[]),
            package("pilot-tests", "tests", &["pilot-user", "pilot-new"]),
        ]});
        let complaints = dependencies(&metadata);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].starts_with("pilot-engine depends on pilot-user"), "{complaints:?}");
        assert!(complaints[1].starts_with("pilot-new is in no layer"), "{complaints:?}");
    }
}

//! `docs/tutorial.md`, as a reader follows it.

use std::fs;
use std::path::Path;
use std::process::{self, Command};

use crate::pilot;

const TUTORIAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tutorial.md");
/// Seconds for all of it, which takes three. What is longer hangs: then its processes are ended.
const LIMIT: &str = "180";
/// Between the outputs of two blocks.
const NEXT: &str = "-- next block --";

/// The commands of the blocks marked `sh`, in one shell; each prints what the block marked `text` behind it says. The two
/// namespaces have other names, so that nobody else's are in the way.
#[test]
fn its_commands_work_and_print_what_it_says() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "skipped: tutorial::its_commands_work_and_print_what_it_says: needs root, to make network namespaces"
        );
        return;
    }
    let text = fs::read_to_string(TUTORIAL).expect("docs are in the repository");
    let place = Place::new();
    let (mut script, mut expected) =
        (String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"), Vec::new());
    for (kind, block) in blocks(&text) {
        match kind {
            "sh" => {
                script += &format!("{block}echo '{NEXT}'\n");
                expected.push(None);
            }
            "text" => *expected.last_mut().unwrap() = Some(block),
            // To be built: this test has done that. The rest is for real hosts.
            _ => {}
        }
    }
    assert!(expected.len() >= 8 && expected.iter().flatten().count() >= 4, "blocks are marked: {expected:?}");
    let path = std::env::join_paths(
        [pilot::executable().parent().unwrap().to_owned()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let output = Command::new("timeout")
        .args(["--kill-after=5", LIMIT, "bash", "-c", &place.translate(&script)])
        .current_dir(&place.directory)
        .env("PATH", path.unwrap())
        .env_remove("RUST_LOG")
        .output()
        .expect("bash and timeout are there");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    for (said, expected) in said.split(NEXT).zip(expected) {
        let mut rest = said;
        for part in expected.unwrap_or_default().split('…').map(str::trim) {
            let at = rest.find(part).unwrap_or_else(|| panic!("expected `{part}` in:\n{said}"));
            rest = &rest[at + part.len()..];
        }
    }
}

/// A directory, and two namespaces that the commands make, gone when dropped.
struct Place {
    directory: std::path::PathBuf,
    tag: String,
}

impl Place {
    fn new() -> Self {
        let tag = format!("pilot-tutorial-{}", process::id());
        let directory = std::env::temp_dir().join(&tag);
        fs::create_dir(&directory).expect("a directory of this name is ours alone");
        Self { directory, tag }
    }

    fn translate(&self, script: &str) -> String {
        // A reader's directory is within the clone.
        let script = script.replace("../sdk/python", concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk/python"));
        script.replace("host-a", &format!("{}-a", self.tag)).replace("host-b", &format!("{}-b", self.tag))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for end in ["a", "b"] {
            let name = format!("{}-{end}", self.tag);
            if Path::new("/run/netns").join(&name).exists() {
                let _ = Command::new("ip").args(["netns", "delete", &name]).status();
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The fenced blocks with their marks.
fn blocks(markdown: &str) -> Vec<(&str, &str)> {
    let mut fences = markdown.split("```").skip(1).step_by(2);
    std::iter::from_fn(|| fences.next()?.split_once('\n')).collect()
}

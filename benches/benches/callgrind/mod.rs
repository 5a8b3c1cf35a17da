//! A bench run again under callgrind, which counts the instructions of some of its functions alone.

use std::process::Command;

use anyhow::{Context as _, ensure};

/// Runs this program with what `set_up` adds to its command line, and collects within functions of these names, from the last call of
/// `begin` on. What the program printed, and what `callgrind_annotate` says with these options.
pub(crate) fn run(
    functions: &str,
    begin: &str,
    set_up: impl FnOnce(&mut Command),
    annotate: &[&str],
) -> anyhow::Result<(String, String)> {
    let out = std::env::temp_dir().join(format!("pilot-callgrind-{}", std::process::id()));
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--collect-atstart=no", &format!("--toggle-collect={functions}")])
        .args([format!("--zero-before={begin}"), format!("--callgrind-out-file={}", out.display())])
        .arg(std::env::current_exe()?);
    set_up(&mut command);
    let ran = command.output().context("running `valgrind`, of the package of that name")?;
    ensure!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    let annotated = Command::new("callgrind_annotate")
        .args(["--threshold=100", "--auto=no", "--show-percs=no"])
        .args(annotate)
        .arg(&out)
        .output()
        .context("running `callgrind_annotate`, of the package valgrind");
    std::fs::remove_file(&out)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&ran.stdout), text(&annotated?.stdout)))
}

/// The lines of a report that count something: instructions, and the place "file:function [object]".
pub(crate) fn counts(annotated: &str) -> impl Iterator<Item = (u64, &str)> {
    annotated.lines().filter_map(|line| {
        let (count, place) = line.trim_start().split_once("  ")?;
        Some((count.replace(',', "").parse().ok()?, place))
    })
}

//! `pilot completions` and `pilot man`: made from the same description that parses the arguments.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::json;

use super::{Cli, Failure, Output};

pub(super) fn completions(shell: Shell, output: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pilot", &mut script);
    if output.is_json() {
        let script = String::from_utf8_lossy(&script);
        output.event(&json!({"event": "completions", "shell": shell.to_string(), "script": script}), || None);
        return Ok(());
    }
    std::io::stdout().write_all(&script).context("cannot write the script").map_err(Failure::Failed)
}

pub(super) fn man(directory: &Path, output: &Output) -> Result<(), Failure> {
    let words = || format!("cannot write manual pages into {}", directory.display());
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .with_context(words)
        .map_err(Failure::Failed)?;
    let event = json!({"event": "man", "directory": directory});
    output.event(&event, || Some(format!("`man -l {}/pilot.1` begins with the first", directory.display())));
    Ok(())
}

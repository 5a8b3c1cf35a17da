//! `pilot keygen`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Failure, Output};
use crate::identity_file;

/// What to make keys for.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct KeygenArgs {
    /// The file to write new secret keys to; it must not exist.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The file whose identity is to have a new static key, in place of the one it has: the node stays who it is.
    #[arg(long, value_name = "FILE")]
    rotate: Option<PathBuf>,
}

pub(super) fn run(args: KeygenArgs, output: &Output) -> Result<(), Failure> {
    let (made, file) = match (args.rotate, args.out) {
        (Some(file), _) => (identity_file::rotate(&file), file),
        (None, out) => {
            // One of both is there: the parser sees to it.
            let file = out.unwrap_or_default();
            (identity_file::create(&file), file)
        }
    };
    let identity = made.map_err(|error| match error {
        identity_file::Error::Random => Failure::failed(error),
        _ => Failure::usage(error),
    })?;
    let public_key = identity.public_key().to_string();
    let event = json!({"event": "keygen", "public_key": public_key, "identity": file});
    output.event(&event, || Some(public_key.clone()));
    Ok(())
}

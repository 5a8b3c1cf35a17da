//! `pilot keygen`.

use std::path::Path;

use serde_json::json;

use super::{Failure, Output};
use crate::identity_file;

pub(super) fn run(out: &Path, output: &Output) -> Result<(), Failure> {
    let identity = identity_file::create(out).map_err(|error| match error {
        identity_file::Error::Exists(_) => Failure::usage(error),
        _ => Failure::failed(error),
    })?;
    let public_key = identity.public_key().to_string();
    let event = json!({"public_key": public_key, "identity": out});
    output.event(&event, || Some(public_key.clone()));
    Ok(())
}

//! Why a configuration cannot be used, in words.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a configuration cannot be used: which field, what was given, what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read config file {file}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The text is not TOML, or has a field that is unknown, missing or of another type.
    #[error("config: {0}")]
    Toml(#[from] toml::de::Error),
    /// A field's value is not allowed.
    #[error("config: `{field}`: given {given}, allowed: {allowed}")]
    Field {
        /// The field, with the peer's name where there are several.
        field: String,
        /// The value as given.
        given: String,
        /// What would have been right.
        allowed: String,
    },
}

pub(super) fn parse<T>(field: impl Into<String>, text: &str) -> Result<T, Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error: T::Err| Error::Field {
        field: field.into(),
        given: format!("{text:?}"),
        allowed: error.to_string(),
    })
}

pub(super) fn socket_addr(field: impl Into<String>, text: &str) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| Error::Field {
        field: field.into(),
        given: format!("{text:?}"),
        allowed: "an IP address and a port, such as 192.0.2.1:4242 or [2001:db8::1]:4242".into(),
    })
}

pub(super) fn refuse(field: impl Into<String>, given: impl ToString, allowed: impl Into<String>) -> Result<(), Error> {
    Err(Error::Field { field: field.into(), given: given.to_string(), allowed: allowed.into() })
}

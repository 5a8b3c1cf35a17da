//! The file that holds a node's secret keys: TOML with two fields in base64, readable by its owner only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_engine::identity::{Identity, IdentityError};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

/// Most bytes of an identity file: two keys and a comment take under 300; more is some other file.
const FILE_LEN_MAX: u64 = 4096;

/// Mode bits that let someone else read or write.
const OTHERS: u32 = 0o077;

/// Why an identity file cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is a file already; its keys may be in use.
    #[error("{0} exists already; keys are never overwritten: remove it, or choose another name")]
    Exists(PathBuf),
    /// The file cannot be made, written or read.
    #[error("identity file {file}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others than the owner may read it.
    #[error(
        "identity file {file} has mode {mode:04o}, so others can read the secret keys; allowed: 0600 or 0400 \
         (run `chmod 600 {file}`, and make new keys if someone may have read these)"
    )]
    Readable {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error(
        "{file} is not an identity file: expected `ed25519_seed` and `x25519_secret`, each 32 bytes in base64, as \
         `pilot keygen` writes them"
    )]
    Content {
        /// The file.
        file: PathBuf,
    },
    /// The keys were refused.
    #[error("identity file {file}: {source}")]
    Keys {
        /// The file.
        file: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The system has no randomness to make keys from.
    #[error("the operating system gave no random bytes")]
    Random,
}

/// Makes new keys and writes them to a new file of mode 0600.
///
/// # Errors
/// When there is such a file already, or it cannot be written.
pub fn create(file: &Path) -> Result<Identity, Error> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|_| Error::Random)?;
    write_new(file, &seed)
}

/// Gives the identity in a file a new static key. There is always a whole file: the one before, or the one after.
///
/// # Errors
/// When the file cannot be used, or another not be written beside it.
pub fn rotate(file: &Path) -> Result<Identity, Error> {
    let seed = secrets(file)?.0;
    let mut part = file.as_os_str().to_owned();
    part.push(".new");
    let part = PathBuf::from(part);
    let identity = write_new(&part, &seed)?;
    let io_error = |source| Error::Io { file: file.to_owned(), source };
    std::fs::rename(&part, file).map_err(io_error)?;
    Ok(identity)
}

/// With a new static key.
fn write_new(file: &Path, seed: &[u8; 32]) -> Result<Identity, Error> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret).map_err(|_| Error::Random)?;
    let identity = identity(file, seed, &secret)?;
    let text = Zeroizing::new(format!(
        "# Pilot's secret keys of {}. Whoever has them is this node.\ned25519_seed = \"{}\"\nx25519_secret = \"{}\"\n",
        identity.public_key(),
        *Zeroizing::new(STANDARD.encode(seed)),
        *Zeroizing::new(STANDARD.encode(*secret)),
    ));
    // create_new is O_EXCL: neither an old key nor the target of a planted symbolic link is overwritten.
    let mut new =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(|source| {
            match source.kind() {
                io::ErrorKind::AlreadyExists => Error::Exists(file.to_owned()),
                _ => Error::Io { file: file.to_owned(), source },
            }
        })?;
    if let Err(source) = new.write_all(text.as_bytes()).and_then(|()| new.sync_all()) {
        // Half a key is of no use, and would be in the way of the next try.
        let _ = std::fs::remove_file(file);
        return Err(Error::Io { file: file.to_owned(), source });
    }
    Ok(identity)
}

/// Reads the keys.
///
/// # Errors
/// When the file cannot be read, can be read by others than its owner, or holds something else.
pub fn read(file: &Path) -> Result<Identity, Error> {
    let (seed, secret) = secrets(file)?;
    identity(file, &seed, &secret)
}

fn secrets(file: &Path) -> Result<(Secret, Secret), Error> {
    let io_error = |source| Error::Io { file: file.to_owned(), source };
    let content_error = || Error::Content { file: file.to_owned() };
    let opened = File::open(file).map_err(io_error)?;
    let mode = opened.metadata().map_err(io_error)?.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(Error::Readable { file: file.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::with_capacity(FILE_LEN_MAX as usize));
    opened.take(FILE_LEN_MAX).read_to_string(&mut text).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => content_error(),
        _ => io_error(source),
    })?;
    // Neither message nor cause of a parse error may quote the text: it has the secrets in it.
    let keys: Keys = toml::from_str(&text).map_err(|_| content_error())?;
    let seed = decode(&keys.ed25519_seed).ok_or_else(content_error)?;
    let secret = decode(&keys.x25519_secret).ok_or_else(content_error)?;
    Ok((seed, secret))
}

/// Wiped when dropped.
type Secret = Zeroizing<[u8; 32]>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    ed25519_seed: String,
    x25519_secret: String,
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.ed25519_seed.zeroize();
        self.x25519_secret.zeroize();
    }
}

fn decode(text: &str) -> Option<Secret> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

fn identity(file: &Path, seed: &[u8; 32], secret: &[u8; 32]) -> Result<Identity, Error> {
    Identity::from_secrets(*seed, *secret).map_err(|source| Error::Keys { file: file.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::test_directory::Directory;

    #[test]
    fn what_was_created_is_read_and_belongs_to_its_owner_only() {
        let directory = Directory::new("identity-round-trip");
        let made = create(&directory.file("a.key")).unwrap();
        assert_eq!(directory.file("a.key").metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(read(&directory.file("a.key")).unwrap().public_key(), made.public_key());
    }

    #[test]
    fn another_static_key_is_the_same_identity() {
        let directory = Directory::new("identity-rotate");
        let file = directory.file("a.key");
        assert!(matches!(rotate(&file), Err(Error::Io { .. })), "there is none");
        let made = create(&file).unwrap().public_key();
        let rotated = rotate(&file).unwrap().public_key();
        assert!(rotated.identity == made.identity && rotated.static_key != made.static_key);
        assert_eq!(read(&file).unwrap().public_key(), rotated);
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn keys_are_not_overwritten_also_not_through_a_link() {
        let directory = Directory::new("identity-exists");
        let made = create(&directory.file("a.key")).unwrap();
        assert!(matches!(create(&directory.file("a.key")), Err(Error::Exists(_))));
        let link = directory.file("link");
        std::os::unix::fs::symlink(directory.file("nowhere"), &link).unwrap();
        assert!(matches!(create(&link), Err(Error::Exists(_))));
        assert_eq!(read(&directory.file("a.key")).unwrap().public_key(), made.public_key());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_in_words() {
        let directory = Directory::new("identity-mode");
        create(&directory.file("a.key")).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o660, 0o601] {
            std::fs::set_permissions(directory.file("a.key"), std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&directory.file("a.key")).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
        std::fs::set_permissions(directory.file("a.key"), std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read(&directory.file("a.key")).is_ok());
    }

    #[test]
    fn other_content_is_refused_and_not_quoted() {
        let directory = Directory::new("identity-content");
        let good = STANDARD.encode([7; 32]);
        let short = STANDARD.encode([7; 31]);
        for (number, text) in [
            String::new(),
            format!("ed25519_seed = \"{good}\"\n"),
            format!("ed25519_seed = \"{good}\"\nx25519_secret = \"{short}\"\n"),
            format!("ed25519_seed = \"{good}\"\nx25519_secret = \"{good}\"\nmore = 1\n"),
            format!("ed25519_seed = \"{good}\"\nx25519_secret = {good}\n"),
            "\u{fffd}".repeat(5000),
        ]
        .into_iter()
        .enumerate()
        {
            let file = directory.0.join(number.to_string());
            let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).unwrap();
            new.write_all(text.as_bytes()).unwrap();
            let error = read(&file).unwrap_err();
            assert!(matches!(error, Error::Content { .. }), "{error}");
            assert!(!format!("{error} {error:?}").contains(&good), "{error:?}");
        }
    }
}

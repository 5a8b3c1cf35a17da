//! Nodes with keys and configurations of their own, in a directory that is removed.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use pilot_user::{Node, identity_file};

/// A directory with two configurations, `a.toml` and `b.toml`, that know each other.
pub(crate) struct Scene {
    pub(crate) directory: PathBuf,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// With more lines in both configurations.
    pub(crate) fn with(lines: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("pilot-api-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let ports = [free_port(), free_port()];
        let names = ["a", "b"];
        let keys =
            names.map(|name| identity_file::create(&directory.join(format!("{name}.key"))).unwrap().public_key());
        for (own, other) in [(0, 1), (1, 0)] {
            let text = format!(
                "identity = '{}.key'\naddress = '0:0000.0000.000{}'\nlisten = '127.0.0.1:{}'\n{lines}\n\
                 [[peers]]\nname = '{}'\naddress = '0:0000.0000.000{}'\nkey = '{}'\nendpoint = '127.0.0.1:{}'\n",
                names[own],
                own + 1,
                ports[own],
                names[other],
                other + 1,
                keys[other],
                ports[other],
            );
            fs::write(directory.join(format!("{}.toml", names[own])), text).unwrap();
        }
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A node of this process whose workers have no threads.
    pub(crate) fn node_in_runtime(&self, name: &str) -> Node {
        Node::builder().config_file(self.path(&format!("{name}.toml"))).in_runtime().start().unwrap()
    }

    /// A node of this process.
    pub(crate) fn node(&self, name: &str) -> Node {
        Node::builder().config_file(self.path(&format!("{name}.toml"))).start().unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A port that was free just now.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

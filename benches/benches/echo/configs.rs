//! A node's configuration in each namespace.

use pilot_user::config::Config;
use pilot_user::identity_file;

use super::scene::{ADDRESSES, DEVICES, Scene};

/// Makes keys and a configuration for each end.
pub(crate) fn both(scene: &Scene, datapath: &str) -> anyhow::Result<[Config; 2]> {
    let key = |end: usize| identity_file::create(&scene.directory.join(format!("{end}.key")));
    let keys = [key(0)?.public_key(), key(1)?.public_key()];
    let config = |own: usize| {
        let other = 1 - own;
        let text = format!(
            "identity = \"{own}.key\"\naddress = \"0:0000.0000.000{own}\"\ninterface = \"{}\"\nlisten = \"{}\"\n\
             datapath = \"{datapath}\"\n[[peers]]\nname = \"other\"\naddress = \"0:0000.0000.000{other}\"\n\
             key = \"{}\"\nendpoint = \"{}\"\n",
            DEVICES[own], ADDRESSES[own], keys[other], ADDRESSES[other],
        );
        Config::parse(&text, &scene.directory)
    };
    Ok([config(0)?, config(1)?])
}

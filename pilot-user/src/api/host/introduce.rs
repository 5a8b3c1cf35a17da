//! Who is at an address, for an application that asks (local-protocol.md L3.10, wire.md §3.5).

use std::collections::btree_map::Entry;
use std::net::SocketAddr;

use pilot_engine::Event;
use pilot_engine::identity::PublicKey;
use serde_json::json;

use super::super::protocol::{Code, Error};
use super::client::Client;
use super::{Context, Host};

impl Client {
    pub(super) fn on_introduce(
        &mut self,
        ctx: &mut Context<'_>,
        request: u32,
        remote: SocketAddr,
        key: Option<String>,
    ) -> Result<(), Error> {
        let wanted = key.map(|key| {
            let key: Result<PublicKey, _> = key.parse();
            key.map_err(|error| Error::malformed(format!("introduce: `key`: {error}")))
        });
        let wanted = wanted.transpose()?.map(|key| key.identity);
        let Entry::Vacant(asked) = ctx.introducing.entry(remote) else {
            return Err(Error::new(Code::Busy, format!("introduce: somebody is asking {remote} already")));
        };
        ctx.endpoint.introduce(ctx.now, remote, wanted).map_err(|error| Error::from(&error))?;
        asked.insert((self.id, request));
        Ok(())
    }
}

impl Host {
    /// Answers who asked, unless it is gone.
    pub(super) fn on_introduced(&mut self, event: &Event) {
        let (remote, answer) = match event {
            Event::Introduced { key, address, remote, begun_here: true, accepted } => {
                let (key, address) = (key.to_string(), address.to_string());
                (remote, Ok(json!({"key": key, "address": address, "endpoint": remote, "accepted": accepted})))
            }
            Event::NotIntroduced { remote } => {
                let words = format!("{remote}: no answer: nobody is there, it has introductions off, or another key");
                (remote, Err(Error::new(Code::TimedOut, words)))
            }
            _ => return,
        };
        if let Some((client, request)) = self.introducing.remove(remote)
            && let Some(client) = self.clients.get(&client)
        {
            client.answer(request, answer);
        }
    }
}

//! Has the node of this host hold a plan, and prints what another agent makes of it: `hold SOCKET PEER`.

use std::error::Error;

use pilot_user::context::{Document, Kind, Rights};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [socket, peer] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: hold SOCKET PEER")?;
    let node = pilot_user::Node::attach(socket).await?;
    let rights = Rights { read: vec![peer.clone()], write: vec![peer] };
    let plan = Document::decode(Kind::Json, br#"{"anomalies": 47}"#)?;
    let mut plan = node.create_context("plan", &plan, rights).await?.follow().await?;
    println!("{}", plan.render());
    println!("{}", plan.deltas().await?);
    Ok(())
}

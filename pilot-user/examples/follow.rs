//! Follows the plan of an agent at another node, and changes it: `follow SOCKET PEER`.

use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [socket, peer] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: follow SOCKET PEER")?;
    let node = pilot_user::Node::attach(socket).await?;
    let mut plan = node.context("plan", peer.as_str()).follow().await?;
    println!("{}", plan.render());
    plan.context().change(&pilot_user::context::Change::merge(br#"{"anomalies": 48}"#)?).await?;
    println!("{}", plan.deltas().await?);
    Ok(())
}

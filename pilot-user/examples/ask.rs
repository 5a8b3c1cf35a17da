//! Sends a delta to an agent on another node and prints its answer: `ask CONFIG PEER`.

use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let config = arguments.next().ok_or("usage: ask CONFIG PEER")?;
    let peer = arguments.next().ok_or("usage: ask CONFIG PEER")?;
    let node = pilot_user::Node::builder().config_file(config).start()?;
    let agent = node.connect(&peer, 7).await?;
    agent.send("anomalies: 47 -> 48").await?;
    println!("{}", String::from_utf8(agent.receive().await?)?);
    node.close().await;
    Ok(())
}

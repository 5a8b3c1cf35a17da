//! The programs that `cargo xtask bench` measures: one run of one system, in namespaces that it made, and what it cost as one
//! JSON object. Agents are threads of this process; each has a namespace, and its own sockets and runtime or worker.

mod changes;
mod corpus;
mod grpc;
mod http;
mod hub;
mod patches;
mod pilot;
mod pipeline;
mod place;
mod resend;
mod tls;
mod transport;
mod websocket;

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use corpus::{AGENTS, Corpus};
use pipeline::Arm;
use place::Places;
use resend::{Carrier, Resend};

#[derive(Parser)]
enum Bench {
    /// Three agents work on a document
    Pipeline {
        #[arg(long)]
        system: System,
        #[command(flatten)]
        scene: Scene,
    },
    /// A follower hears of rare changes
    Changes {
        #[arg(long)]
        system: changes::System,
        /// Intervals of short polling that the run takes
        #[arg(long)]
        intervals: u32,
        #[command(flatten)]
        scene: Scene,
    },
    /// Two ends, and what passes between them
    Transport {
        #[arg(long)]
        system: transport::Name,
        #[command(flatten)]
        load: transport::Load,
        #[command(flatten)]
        scene: Scene,
        /// Be the asking end alone, beside a process that is the other
        #[arg(long)]
        asks: bool,
    },
    /// What an echo costs a node that has many tunnels, in memory
    Tunnels {
        #[arg(long)]
        tunnels: u32,
        /// Of the node's own time
        #[arg(long, value_parser = transport::milliseconds)]
        time_ms: std::time::Duration,
    },
}

#[derive(Args)]
struct Scene {
    /// Those of the agents, in their order
    #[arg(long, value_delimiter = ',')]
    namespaces: Vec<String>,
    /// An empty directory
    #[arg(long)]
    directory: PathBuf,
}

/// A way to run the pipeline.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum System {
    HttpJson,
    A2aJsonRpc,
    Grpc,
    Websocket,
    WebsocketPatches,
    Pilot,
    PilotUdp,
}

fn name(system: &impl ValueEnum) -> String {
    system.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn main() -> anyhow::Result<()> {
    let report = match Bench::parse() {
        Bench::Pipeline { system, scene } => serde_json::to_string(&pipeline(system, scene)?)?,
        Bench::Changes { system, intervals, scene } => {
            let places = Places::new(scene.namespaces, 2)?;
            serde_json::to_string(&changes::run(system, &name(&system), &places, &scene.directory, intervals)?)?
        }
        Bench::Tunnels { tunnels, time_ms } => serde_json::to_string(&transport::tunnels::run(tunnels, time_ms)?)?,
        Bench::Transport { system, load, scene, asks } => {
            raise_descriptor_limit()?;
            let (places, directory) = (Places::new(scene.namespaces, 2)?, scene.directory);
            if asks {
                return transport::rest(system, &places, &directory, load);
            }
            let run = if load.kind == transport::Kind::Idle { transport::idle } else { transport::run };
            serde_json::to_string(&run(system, &places, &directory, load)?)?
        }
    };
    println!("{report}");
    Ok(())
}

/// Thousands of connections need a descriptor each, at both ends.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

fn pipeline(system: System, scene: Scene) -> anyhow::Result<pipeline::Report> {
    let places = Places::new(scene.namespaces, AGENTS.len())?;
    let corpus = Corpus::load()?;
    pipeline::run(&name(&system), &places, &corpus, |traffic| {
        let resend = |carrier| Ok::<Box<dyn Arm>, _>(Box::new(Resend::new(carrier, &places, &corpus.start, &traffic)?));
        let pilot = |datapath| pilot::hub(datapath, &scene.directory, &places, &corpus.start, AGENTS.len(), &traffic);
        match system {
            System::HttpJson => resend(Carrier::Http),
            System::A2aJsonRpc => resend(Carrier::A2a),
            System::Grpc => resend(Carrier::Grpc),
            System::Websocket => resend(Carrier::WebSocket),
            System::WebsocketPatches => Ok(Box::new(patches::hub(&places, &corpus.start, &traffic)?)),
            System::Pilot => Ok(Box::new(pilot("xdp")?)),
            System::PilotUdp => Ok(Box::new(pilot("udp")?)),
        }
    })
}

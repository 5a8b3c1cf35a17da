//! The `pilot` command: arguments, and what a command's end means.

mod attached;
mod bench;
mod ctx;
mod doctor;
mod generate;
mod hint;
mod introduce;
mod keygen;
mod listen;
mod local;
mod output;
mod ping;
mod send;
mod session;
mod stats;
mod topic;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pilot_engine::identity::PublicKey;
use pilot_engine::{Aead, Aeads};

pub use output::Output;

/// Said with `--help`, and by the manual: scripts rely on them.
const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed: the network, the peer or this machine; 2 the arguments or the configuration are wrong, or a right \
is missing; 130 told to stop before it was done.";

/// A transport for agents: encrypted tunnels that remember, over AF_XDP where there is one.
#[derive(Parser, Debug)]
#[command(name = "pilot", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    /// One JSON object a line, instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a node's keys, or a new static key for them, and print its public key.
    ///
    /// With --rotate, restart the node behind it. Peers that it calls, because it has their `endpoint`, know it again at once. Those that
    /// call it must have the new public key in their configuration before they can, and be told to read that (SIGHUP).
    Keygen(keygen::KeygenArgs),
    /// Run a node with the echo service, for the applications of this host, until it is told to stop.
    Up(NodeArgs),
    /// Run a node that also receives files.
    Listen {
        #[command(flatten)]
        node: NodeArgs,
        /// Where to put the files.
        #[arg(long, value_name = "DIR", default_value = ".")]
        files: PathBuf,
    },
    /// Send messages to a peer's echo service and time the answers.
    Ping {
        /// The peer's name in the configuration.
        peer: String,
        #[command(flatten)]
        node: NodeArgs,
        /// How many messages.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
        count: u64,
        /// What to send.
        #[arg(long, default_value = "are you there, node?")]
        payload: String,
        /// Milliseconds between messages; 0: the next as soon as the last was answered.
        #[arg(long, value_name = "MS", default_value_t = 1000)]
        interval: u64,
    },
    /// Say what is as it should be, what is not, and what to do about that: the configuration, rights, the datapath, the peers.
    ///
    /// It asks the node that runs with the configuration, or else tries out how one would run.
    Doctor(NodeArgs),
    /// Ask who is at an address, and tell it who this node is; both need `introductions` in their configuration.
    Introduce {
        /// Where to ask.
        endpoint: SocketAddr,
        #[command(flatten)]
        node: NodeArgs,
        /// Who it has to be: of this public key, the identity.
        #[arg(long)]
        key: Option<PublicKey>,
    },
    /// Shared contexts: documents that peers follow by their changes.
    #[command(subcommand)]
    Ctx(ctx::CtxCommand),
    #[command(flatten)]
    Local(local::LocalCommand),
    /// Print a script by which a shell completes the arguments of `pilot`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one for each command.
    Man {
        /// Where to.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Send a file to a peer.
    Send {
        /// The file.
        file: PathBuf,
        /// The peer's name in the configuration.
        peer: String,
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Args, Debug)]
struct NodeArgs {
    /// The node's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which AEAD to use.
    #[arg(long, value_enum, default_value_t)]
    aead: AeadChoice,
}

/// Which AEAD a node uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum AeadChoice {
    /// What both ends do best.
    #[default]
    Auto,
    /// AES-256-GCM or no tunnel.
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20-Poly1305 or no tunnel.
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl AeadChoice {
    fn aeads(self) -> Aeads {
        match self {
            Self::Auto => Aeads::detect(),
            Self::Aes256Gcm => Aeads::only(Aead::Aes256Gcm),
            Self::ChaCha20Poly1305 => Aeads::only(Aead::ChaCha20Poly1305),
        }
    }
}

/// How a command ends, when not well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments or the configuration are wrong: exit code 2.
    Usage(anyhow::Error),
    /// The network, the peer or this machine: exit code 1.
    Failed(anyhow::Error),
    /// Told to stop before it was done: exit code 130.
    Interrupted,
}

impl Failure {
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }

    fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Scripts that ask for JSON are told in JSON of what they asked wrong.
        Err(error) if error.use_stderr() && std::env::args().any(|argument| argument == "--json") => {
            return Output::new(true).failure(&Failure::usage(error));
        }
        Err(error) => error.exit(),
    };
    let output = Output::new(cli.json);
    let result = match cli.command {
        Command::Keygen(args) => keygen::run(args, &output),
        Command::Up(node) => listen::run(&node, None, None, &output),
        Command::Listen { node, files } => listen::run(&node, Some(files), None, &output),
        Command::Ctx(command) => ctx::run(command, &output),
        Command::Local(command) => local::run(command, &output),
        Command::Completions { shell } => generate::completions(shell, &output),
        Command::Man { directory } => generate::man(&directory, &output),
        Command::Ping { peer, node, count, payload, interval } => {
            let wanted = ping::Wanted { count, payload: payload.into_bytes(), interval_ms: interval };
            ping::run(&node, &peer, wanted, &output)
        }
        Command::Doctor(node) => doctor::run(&node, &output),
        Command::Introduce { endpoint, node, key } => introduce::run(&node, endpoint, key, &output),
        Command::Send { file, peer, node } => send::run(&node, &file, &peer, &output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.failure(&failure),
    }
}

//! The `pilot` command.

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

/// What is logged unless RUST_LOG says otherwise: warnings. A newer kernel than the netlink crate knows is none, and would be one a second.
const DEFAULT_LOG: &str = "warn,netlink_packet_route=error";

fn main() -> ExitCode {
    // Standard output is the commands'; logs go to standard error.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    pilot_user::cli::main()
}

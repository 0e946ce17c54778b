//! The `vmrestore` command: parse, run, exit code.

use clap::Parser;
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;
use vmrestore::cli::{Cli, run};

fn main() -> ExitCode {
    vmrestore::phases::begin();
    // What the kernel gives its first program is no command line of ours.
    if vmrestore::cli::init::is_init() {
        vmrestore::cli::init::run();
    }
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    ExitCode::from(run(&cli) as u8)
}

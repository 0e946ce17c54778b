//! What the person asked, and what they see.
//!
//! Data goes to stdout, talk to stderr. Each command is a file of its own.

mod args;
mod bring_back;
mod check;
mod exit;
mod list;
mod open;
mod output;
mod report;
mod select;
mod show;
mod table;
mod write_out;

pub use args::Cli;
pub use exit::{Exit, Failure};

use args::Command;

/// The version of the JSON documents of all commands.
pub const SCHEMA_VERSION: u32 = 1;

/// Does what the command line says and returns how it ended.
pub fn run(cli: &Cli) -> Exit {
    if matches!(
        cli.command,
        Command::List { .. } | Command::Show { .. } | Command::Check { .. }
    ) {
        crate::sys::broken_pipe::end_quietly();
    }
    let result = match &cli.command {
        Command::Guests {
            dump,
            selectors,
            options,
        } => bring_back::guests(dump, selectors, options, cli.json),
        Command::Process {
            dump,
            selectors,
            options,
        } => bring_back::processes(dump, selectors, options, cli.json),
        Command::List { dump, all } => list::run(dump, *all, cli.json),
        Command::Show { dump, selector } => show::run(dump, selector, cli.json),
        Command::Check {
            dump,
            source,
            quick,
        } => check::run(dump.as_deref(), source, *quick, cli.json),
        Command::Extract {
            dump,
            selectors,
            output,
        } => write_out::run(dump, selectors, output, cli.json),
        Command::Restore { directory, options } => {
            bring_back::directory(directory, options, cli.json)
        }
    };
    result.unwrap_or_else(|failure| {
        failure.print();
        failure.exit
    })
}

//! What the person asked, and what they see.
//!
//! Data goes to stdout, talk to stderr. Each command is a file of its own.

mod after_panic;
mod args;
mod arriving;
mod bare;
mod bring_back;
mod catch_up;
mod check;
mod exit;
mod in_place;
mod list;
mod open;
mod output;
mod pick;
mod prepare;
mod report;
mod select;
mod sets;
mod show;
mod stored;
mod table;
mod this_host;
mod write_core;
mod write_out;

pub use after_panic::init;
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
            bare,
            options,
            ..
        } if bare.bare => bare::guest(dump, selectors, bare, options, cli.json),
        Command::Guests {
            dump,
            selectors,
            options,
            in_place,
            plan,
            ..
        } => {
            let options = args::RestoreArgs {
                in_place: *in_place,
                plan: plan.clone(),
                ..options.clone()
            };
            bring_back::guests(dump, selectors, &options, cli.json)
        }
        Command::Process {
            dump,
            selectors,
            sets,
            options,
        } => bring_back::processes(dump, selectors, sets, options, cli.json),
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
            core: true,
            force,
            ..
        } => write_core::run(dump, selectors, output, *force, cli.json),
        Command::Extract {
            dump,
            selectors,
            sets,
            output,
            ..
        } => write_out::run(dump, selectors, sets, output, cli.json),
        Command::Restore { directory, options } => stored::all(directory, options, cli.json),
        Command::Prepare { options } => prepare::run(options, cli.json),
        Command::AfterPanic { options } => after_panic::run(options),
    };
    result.unwrap_or_else(|failure| {
        failure.print();
        failure.exit
    })
}

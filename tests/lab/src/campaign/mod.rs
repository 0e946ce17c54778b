//! Crash after crash over a mix of guests, each judged by its own evidence:
//! how many come back, and does any come back wrong without a word?

mod judged;
pub mod plan;
pub mod record;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

use crate::Lab;
use crate::scenario::unique_seed;
use record::{Crash, Outcome};

/// What a campaign does.
pub struct Options {
    /// The vmrestore binary.
    pub vmrestore: PathBuf,
    /// Crashes, with those that were had before.
    pub crashes: u64,
    /// So many of the plan are passed over: a short campaign that is not
    /// always the same.
    pub skip: u64,
    /// So many hosts at once.
    pub at_once: usize,
    /// Where crashes are written down; a campaign in the same directory goes on.
    pub state: PathBuf,
    /// Where the table goes, in Markdown.
    pub table: Option<PathBuf>,
}

/// Runs what is left of the campaign. Whether nothing came back wrong.
///
/// # Errors
/// The lab cannot get a host as far as its crash, or files cannot be written.
pub fn run(lab: &Lab, options: &Options) -> Result<bool> {
    std::fs::create_dir_all(&options.state).with_context(|| options.state.display().to_string())?;
    let next = AtomicU64::new(options.skip + 1);
    let worker = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number > options.skip + options.crashes {
                return Ok(());
            }
            if Crash::had(&options.state, number).is_none() {
                // A host that cannot be brought to its crash, or a capture
                // kernel that fails, says nothing about vmrestore; the crash is
                // had the next time.
                match one(lab, options, number) {
                    Ok(crash) => report(&crash, options)?,
                    Err(error) => eprintln!("campaign: crash {number} was not had: {error:#}"),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.at_once).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|w| {
            w.join()
                .unwrap_or_else(|_| anyhow::bail!("a worker panicked"))
        })
    })?;
    let all = Crash::all(&options.state);
    println!("{}", table::markdown(&all));
    Ok(!all.is_empty()
        && all
            .iter()
            .flat_map(|crash| &crash.fates)
            .all(|fate| fate.outcome != Outcome::Wrong))
}

fn one(lab: &Lab, options: &Options, number: u64) -> Result<Crash> {
    let planned = plan::guests(number);
    let mut scenario = plan::scenario(number, &planned);
    scenario.seed = unique_seed(number);
    let dump = lab.dump(&scenario)?;
    let crash = judged::crash(lab, &dump, &planned, number, &options.vmrestore)
        .unwrap_or_else(|error| judged::unjudged(&dump, &planned, number, &error));
    let well = |outcome| {
        !matches!(
            outcome,
            Outcome::Failed | Outcome::Wrong | Outcome::Unjudged
        )
    };
    if crash.fates.iter().all(|fate| well(fate.outcome)) {
        std::fs::remove_dir_all(&dump.dir)?;
    } else {
        eprintln!("campaign: the dump is kept in {}", dump.dir.display());
    }
    Ok(crash)
}

fn report(crash: &Crash, options: &Options) -> Result<()> {
    crash.keep(&options.state)?;
    for fate in &crash.fates {
        eprintln!(
            "campaign: crash {}: {} ({}, {}; vCPUs {}): {:?} {}",
            crash.number, fate.name, fate.flavour, fate.doing, fate.vcpus, fate.outcome, fate.why
        );
    }
    match &options.table {
        Some(path) => write_table(path, &options.state),
        None => Ok(()),
    }
}

/// The part of the page that is written by hand, at its end.
const BY_HAND: &str = "\n## Had again\n";

fn write_table(path: &Path, state: &Path) -> Result<()> {
    let mut text = table::markdown(&Crash::all(state));
    // What people have written about crashes that were had again stays.
    if let Ok(old) = std::fs::read_to_string(path)
        && let Some(at) = old.find(BY_HAND)
    {
        text += &old[at..];
    }
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

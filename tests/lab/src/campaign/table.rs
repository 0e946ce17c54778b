//! A campaign in Markdown: docs/survival.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::record::{Crash, Fate, Outcome};

const OUTCOMES: [Outcome; 7] = [
    Outcome::Exact,
    Outcome::Losses,
    Outcome::Rescued,
    Outcome::Refused,
    Outcome::Failed,
    Outcome::Wrong,
    Outcome::Unjudged,
];

const HEAD: &str = "\
# Survival: how many guests come back

`scripts/campaign N` makes N crashes at random moments over a mix of guests under load, unattended, and writes this
page. After each crash the host boots again and `vmrestore guests` brings all its guests back from the dump alone. Each
is judged by its own evidence: a nonce that only its RAM knew, a counter without gap or repeat, sums over 32 MiB of its
memory and over its changing pages, its disk block by block, its clocks on all CPUs, its serial output byte for byte;
then its VMM must answer on QMP, and its power button must work. What the lab loses *before* a crash is tried again and
counted apart; what fails after it is a row here.

*exact*: went on as if nothing had happened. *losses*: the same, but for what vmrestore had said is lost. *rescued*:
refused because the crash had taken blocks from its disk's image (docs/disks.md, Past the page cache), and whole with
`--rescue-blocks`. *refused*: vmrestore said beforehand that it cannot bring it back, and why. *failed*: it tried, failed
and said so. *wrong*: it said that all is well, and it was not: this column must be zero. *unjudged*: the whole rebooted
host stopped or could not be asked.
";

/// The page.
pub fn markdown(crashes: &[Crash]) -> String {
    let mut page = HEAD.to_owned();
    let fates: Vec<&Fate> = crashes.iter().flat_map(|crash| &crash.fates).collect();
    let lost: usize = crashes.iter().map(|crash| crash.lost_attempts.len()).sum();
    let back = fates
        .iter()
        .filter(|f| {
            matches!(
                f.outcome,
                Outcome::Exact | Outcome::Losses | Outcome::Rescued
            )
        })
        .count();
    let wrong = fates.iter().filter(|f| f.outcome == Outcome::Wrong).count();
    // Writing to a String does not fail.
    let _ = writeln!(
        page,
        "\n**{} guests in {} crashes: {back} came back, {wrong} came back wrong without a word.** \
         (Attempts that the lab lost before a crash: {lost}.)\n",
        fates.len(),
        crashes.len()
    );
    let _ = writeln!(page, "## By configuration");
    by(&mut page, "configuration", &fates, |fate| &fate.flavour);
    let _ = writeln!(page, "\n## By what the guest was doing");
    by(&mut page, "doing", &fates, |fate| &fate.doing);
    let _ = writeln!(
        page,
        "\n## Not exact\n| crash | guest | doing | vCPUs at the panic | outcome | why |\n|---|---|---|---|---|---|"
    );
    for crash in crashes {
        for fate in crash.fates.iter().filter(|f| f.outcome != Outcome::Exact) {
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} |",
                crash.number,
                fate.flavour,
                fate.doing,
                fate.vcpus,
                word(fate.outcome),
                cell(&fate.why)
            );
        }
    }
    page
}

fn by<'a>(page: &mut String, title: &str, fates: &[&'a Fate], key: fn(&Fate) -> &str) {
    let mut rows: BTreeMap<&'a str, [usize; OUTCOMES.len()]> = BTreeMap::new();
    for fate in fates {
        let row = rows.entry(key(fate)).or_default();
        for (count, outcome) in row.iter_mut().zip(OUTCOMES) {
            *count += usize::from(fate.outcome == outcome);
        }
    }
    let titles: Vec<&str> = OUTCOMES.map(word).into();
    let _ = writeln!(page, "| {title} | guests | {} |", titles.join(" | "));
    let _ = writeln!(page, "|---|---|{}", "---|".repeat(OUTCOMES.len()));
    for (name, row) in rows {
        let counts: Vec<String> = row.iter().map(usize::to_string).collect();
        let all: usize = row.iter().sum();
        let _ = writeln!(page, "| {name} | {all} | {} |", counts.join(" | "));
    }
}

const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Exact => "exact",
        Outcome::Losses => "losses",
        Outcome::Rescued => "rescued",
        Outcome::Refused => "refused",
        Outcome::Failed => "failed",
        Outcome::Wrong => "wrong",
        Outcome::Unjudged => "unjudged",
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}

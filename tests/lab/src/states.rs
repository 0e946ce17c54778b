//! The suite of small programs that hold one kind of state each
//! (tests/programs/states): what is to become of each is said in its source;
//! one host runs all of them, and one crash carries them.
//!
//! The comment at a program's top:
//!
//! ```text
//! /* What it holds, in a sentence or two.
//!  * expect: exact                     it goes on, and the report has nothing to say
//!  * expect: reconstructed WORDS       it goes on, and the report says so in these words
//!  * expect: lost WORDS                it goes on without, and the report says so
//!  * expect: refused WORDS             nothing is started; the error says these words
//!  * may: WORDS                        the report may say this beside, or not
//!  * live: no: WHY                     it cannot be taken from a living kernel
//!  */
//! ```

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::agent::Agent;
use crate::debian::run;
use crate::scenario::Scenario;

/// PID of the first program, and how far apart they are: their threads' are between.
const FIRST_PID: usize = 5000;
const APART: usize = 20;
/// Where all of it is in the host.
pub const HOME: &str = "/data/states";
/// What the host's administrator does at each boot.
pub const SET_UP: &str = "echo 24 > /proc/sys/vm/nr_hugepages; \
     echo 1 > /sys/kernel/mm/ksm/run 2>/dev/null; \
     echo 1 > /proc/sys/fs/suid_dumpable; ulimit -c 0; true";

/// The name of the scenario in which the suite runs.
const SCENARIO: &str = "states";

/// A host on which nothing runs but the suite.
#[must_use]
pub fn scenario() -> Option<Scenario> {
    Some(Scenario {
        name: SCENARIO.into(),
        process: None,
        ..Scenario::named("process")?
    })
}

/// The suite runs on this scenario's host.
#[must_use]
pub fn runs_in(scenario: &Scenario) -> bool {
    scenario.name == SCENARIO
}

/// What is to become of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It goes on, and nothing else is said of it.
    Exact,
    /// It goes on, and something was made anew: these words say how.
    Reconstructed(String),
    /// It goes on without something: these words say what.
    Lost(String),
    /// It is refused, with these words.
    Refused(String),
}

/// One program of the suite.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its source's name, without `.c`.
    pub name: String,
    /// What it holds.
    pub about: String,
    /// What is to become of it.
    pub expect: Expect,
    /// Words of the report that may come beside.
    pub may: Vec<String>,
    /// Why it cannot be taken from a living kernel.
    pub not_live: Option<String>,
    /// The PID that it gets in the host.
    pub pid: usize,
}

/// Where the sources are.
#[must_use]
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../programs/states")
}

/// All programs, by name.
pub fn all() -> Result<Vec<Program>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(sources()).context("tests/programs/states")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".c").map(str::to_owned));
    }
    names.sort();
    names
        .into_iter()
        .enumerate()
        .map(|(number, name)| {
            let path = sources().join(format!("{name}.c"));
            let text = std::fs::read_to_string(&path)?;
            parse(&name, &text, FIRST_PID + number * APART)
                .with_context(|| path.display().to_string())
        })
        .collect()
}

fn parse(name: &str, text: &str, pid: usize) -> Result<Program> {
    let comment = text
        .strip_prefix("/*")
        .and_then(|rest| rest.split_once("*/"))
        .context("no comment at its top")?
        .0;
    let mut program = Program {
        name: name.to_owned(),
        about: String::new(),
        expect: Expect::Exact,
        may: Vec::new(),
        not_live: None,
        pid,
    };
    let mut expected = false;
    for line in comment.lines() {
        let line = line.trim().trim_start_matches("* ").trim();
        if let Some(wanted) = line.strip_prefix("expect: ") {
            expected = true;
            let (kind, words) = wanted.split_once(' ').unwrap_or((wanted, ""));
            program.expect = match (kind, words) {
                ("exact", "") => Expect::Exact,
                ("reconstructed", words) if !words.is_empty() => {
                    Expect::Reconstructed(words.to_owned())
                }
                ("lost", words) if !words.is_empty() => Expect::Lost(words.to_owned()),
                ("refused", words) if !words.is_empty() => Expect::Refused(words.to_owned()),
                _ => bail!("what is {wanted:?}?"),
            };
        } else if let Some(words) = line.strip_prefix("may: ") {
            program.may.push(words.to_owned());
        } else if let Some(why) = line.strip_prefix("live: no: ") {
            program.not_live = Some(why.to_owned());
        } else if line != "*" && !line.is_empty() {
            if !program.about.is_empty() {
                program.about.push(' ');
            }
            program.about.push_str(line);
        }
    }
    ensure!(expected, "its comment has no `expect:`");
    Ok(program)
}

/// A hash of all sources.
pub fn key() -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(sources())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        path.file_name().hash(&mut hasher);
        std::fs::read(&path)?.hash(&mut hasher);
    }
    (SET_UP, START).hash(&mut hasher);
    Ok(hasher.finish())
}

/// Builds one program into `dir`.
pub fn build_one(name: &str, dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let built = dir.join(name);
    run(Command::new("cc")
        .args([
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unused-parameter",
        ])
        .args(["-pthread", "-o"])
        .arg(&built)
        .arg(sources().join(format!("{name}.c"))))?;
    Ok(built)
}

/// Builds all programs, once for each state of the sources: (name, file).
pub fn build(lab: &Path) -> Result<Vec<(String, PathBuf)>> {
    let home = lab.join("states").join(format!("{:016x}", key()?));
    let programs = all()?;
    if !home.exists() {
        let work = home.with_extension(format!("work{}", std::process::id()));
        for program in &programs {
            build_one(&program.name, &work)?;
        }
        // Another run of the lab may have been faster.
        if std::fs::rename(&work, &home).is_err() {
            std::fs::remove_dir_all(&work)?;
        }
    }
    let file = |p: &Program| (format!("states/{}", p.name), home.join(&p.name));
    Ok(programs.iter().map(file).collect())
}

/// Starts a program under its PID, which another one's new thread may take in
/// between, and waits for its first word. Whoever waits takes PIDs, too: a
/// thread that is born late must not find those of the next program.
const START: &str = r#"start() {
    cd /data/states && out=/data/states/out/$1
    for i in 1 2 3 4 5 6 7 8; do
        rm -rf dir/$1 $out; mkdir -p dir/$1 && cd dir/$1
        echo $(($2 - 1)) > /proc/sys/kernel/ns_last_pid
        setsid /data/states/bin/$1 $out </dev/null >/dev/null 2>&1 &
        [ $! = $2 ] && break
        kill -9 $!; wait $!; cd /data/states
    done
    i=0; while [ ! -s $out ] && [ $i -lt 400 ]; do
        usleep 50000; i=$((i + 1)); echo $2 > /proc/sys/kernel/ns_last_pid
    done
    [ -s $out ] && return
    echo "$1 says nothing; pid $2 is $(cat /proc/$2/comm), with threads in:"
    cat /proc/$2/task/*/syscall
}
"#;

/// Starts all programs, which are in `/dump/states`, and waits until each has
/// said its first word. The data disk has them from then on.
pub fn start(agent: &mut Agent) -> Result<()> {
    let mut script = format!(
        "{SET_UP}; mkdir -p {HOME}/out {HOME}/bin && cp -p /dump/states/* {HOME}/bin/ && sync\n\
         {START}"
    );
    let programs = all()?;
    for Program { name, pid, .. } in &programs {
        script.push_str(&format!("start {name} {pid}\n"));
    }
    script.push_str(&format!(
        "cd {HOME}/out; sync; grep -H -v ^READY *; grep -c . * | grep -v ':1$'; true\n"
    ));
    let output = agent.run(&script, Duration::from_secs(240))?;
    let output = output.success("states")?;
    let broken: Vec<&str> = output
        .stdout
        .lines()
        .filter(|line| !line.contains(":ABSENT "))
        .collect();
    ensure!(
        broken.is_empty(),
        "programs that did not come to their state:\n{}",
        broken.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_says_what_it_expects() {
        let programs = all().expect("the programs");
        assert!(programs.len() > 20);
        for program in programs {
            assert!(program.about.ends_with('.'), "{program:?}");
        }
    }

    #[test]
    fn a_comment_is_understood() {
        let text = "/* A thing,\n * in two lines.\n * expect: lost the thing\n * may: a b\n */\n";
        let program = parse("x", text, 1).expect("parsed");
        assert_eq!(program.about, "A thing, in two lines.");
        assert_eq!(program.expect, Expect::Lost("the thing".into()));
        assert_eq!(program.may, ["a b"]);
        assert!(parse("x", "/* A thing. */", 1).is_err());
    }
}

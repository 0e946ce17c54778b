//! The lab's end of the line to PID 1 of the host (`lab-agent` in
//! guest-images, which tells the frames).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// What one command in the host gave.
#[derive(Clone, Debug, Serialize)]
pub struct Output {
    /// Exit code, 128 + signal, or -1 when its time was over.
    pub code: i32,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr.
    pub stderr: String,
}

impl Output {
    /// The output, or an error with all it said, unless it exited with 0.
    pub fn success(self, what: &str) -> Result<Self> {
        ensure!(
            self.code == 0,
            "{what}: exit code {}\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }
}

/// Between two interrupts of the host's CPUs.
const BEAT: Duration = Duration::from_millis(300);

/// The connection to the host's agent.
pub struct Agent {
    writer: Arc<Mutex<UnixStream>>,
    shared: Arc<Shared>,
    next: u64,
    followed: BTreeSet<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hello: bool,
    closed: Option<String>,
    done: BTreeMap<u64, Output>,
    tails: BTreeMap<String, Vec<u8>>,
    newest: BTreeMap<String, Instant>,
    /// When more has come of a followed file, and how many bytes there were then.
    arrivals: BTreeMap<String, Vec<(Instant, usize)>>,
    /// What had come when PID 1 of another kernel said HELLO.
    earlier: Option<BTreeMap<String, Vec<u8>>>,
}

impl Agent {
    /// Reads frames in a thread of its own; followed files also grow in
    /// `dir/live/`.
    pub fn new(stream: UnixStream, dir: &Path) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let live = dir.join("live");
        std::fs::create_dir_all(&live)?;
        let (reader, theirs) = (stream.try_clone()?, Arc::clone(&shared));
        std::thread::Builder::new()
            .name("lab-agent".into())
            .spawn(move || {
                let ended = read_frames(reader, &theirs, &live)
                    .err()
                    .map_or_else(|| "closed".to_owned(), |error| format!("{error:#}"));
                lock(&theirs.state).closed = Some(ended);
                theirs.changed.notify_all();
            })?;
        let writer = Arc::new(Mutex::new(stream));
        let weak = Arc::downgrade(&writer);
        std::thread::Builder::new()
            .name("lab-beat".into())
            .spawn(move || beat(&weak))?;
        Ok(Self {
            writer,
            shared,
            next: 1,
            followed: BTreeSet::new(),
        })
    }

    /// Waits until the host is up.
    pub fn wait_up(&self, limit: Duration) -> Result<()> {
        self.wait("the host to come up", limit, |state| {
            state.hello.then_some(())
        })
    }

    /// Waits until the capture kernel of a host that has died is up as a host, and gives all that
    /// had come of the followed files before. Nothing is followed any more.
    pub fn wait_up_again(&mut self, limit: Duration) -> Result<BTreeMap<String, Vec<u8>>> {
        self.followed.clear();
        self.wait("the capture kernel to come up", limit, |state| {
            state.earlier.take()
        })
    }

    /// When the followed file had more than `bytes`.
    #[must_use]
    pub fn when_longer(&self, name: &str, bytes: usize) -> Option<Instant> {
        let state = lock(&self.shared.state);
        let mut arrivals = state.arrivals.get(name)?.iter();
        arrivals
            .find(|(_, length)| *length > bytes)
            .map(|(at, _)| *at)
    }

    /// Runs a shell command in the host; it is killed after `limit`.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let id = self.send_run(command, limit)?;
        // The host's own limit comes first; a dead host has none.
        self.wait(
            &format!("the command {command:?}"),
            limit + Duration::from_secs(30),
            |state| state.done.remove(&id),
        )
    }

    /// Starts a command and does not wait for it: the one that crashes the
    /// host has no answer.
    pub fn send_run(&mut self, command: &str, limit: Duration) -> Result<u64> {
        let id = self.next;
        self.next += 1;
        let header = format!("RUN {id} {} {}\n", limit.as_secs(), command.len());
        self.send(&header, command)?;
        Ok(id)
    }

    /// Streams the host's file `path` from its start, under `name`. A name that
    /// is followed already goes on as it is.
    pub fn follow(&mut self, name: &str, path: &str) -> Result<()> {
        if !self.followed.insert(name.to_owned()) {
            return Ok(());
        }
        self.send(&format!("FOLLOW {name} {}\n", path.len()), path)
    }

    /// All that has come of the followed file so far.
    #[must_use]
    pub fn tail(&self, name: &str) -> Vec<u8> {
        lock(&self.shared.state)
            .tails
            .get(name)
            .cloned()
            .unwrap_or_default()
    }

    /// How long nothing has come of the followed file.
    #[must_use]
    pub fn silent_for(&self, name: &str) -> Duration {
        lock(&self.shared.state)
            .newest
            .get(name)
            .map_or(Duration::MAX, Instant::elapsed)
    }

    /// Waits until the followed file has `count` whole lines.
    pub fn wait_lines(&self, name: &str, count: usize, limit: Duration) -> Result<()> {
        self.wait(&format!("{count} lines of {name}"), limit, |state| {
            let lines = state
                .tails
                .get(name)
                .map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count());
            (lines >= count).then_some(())
        })
    }

    /// Kills everything in the host, unmounts, turns it off.
    pub fn power_off(&mut self) -> Result<()> {
        self.send("OFF 0\n", "")
    }

    fn send(&mut self, header: &str, body: &str) -> Result<()> {
        lock(&self.writer)
            .write_all(&[header.as_bytes(), body.as_bytes()].concat())
            .context("the line to the host")
    }

    fn wait<R>(
        &self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut(&mut State) -> Option<R>,
    ) -> Result<R> {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(result) = ready(&mut state) {
                return Ok(result);
            }
            if let Some(ended) = &state.closed {
                bail!("waiting for {what}: the host is gone ({ended})");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waiting for {what}: not within {} s", limit.as_secs());
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// QEMU's emulation of SVM changes the requests for interrupts of a CPU without
/// the lock under which others add to them: now and then one is forgotten, and a
/// CPU that is halted then, with the interrupt pending in its APIC, sleeps until
/// the next comes. So some always come.
fn beat(writer: &Weak<Mutex<UnixStream>>) {
    while let Some(writer) = writer.upgrade() {
        if lock(&writer).write_all(b"BEAT\n").is_err() {
            return;
        }
        drop(writer);
        std::thread::sleep(BEAT);
    }
}

fn read_frames(stream: UnixStream, shared: &Shared, live: &Path) -> Result<()> {
    let mut input = BufReader::new(stream);
    loop {
        let mut header = String::new();
        if input.read_line(&mut header)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = header.split_whitespace().collect();
        match words.as_slice() {
            ["HELLO"] => {
                let mut state = lock(&shared.state);
                if state.hello {
                    // Another kernel: its agent sends each file from the start.
                    state.earlier = Some(std::mem::take(&mut state.tails));
                    state.newest.clear();
                    state.arrivals.clear();
                    for entry in std::fs::read_dir(live)?.flatten() {
                        let _ = std::fs::remove_file(entry.path());
                    }
                }
                state.hello = true;
            }
            ["DONE", id, code, out, err] => {
                let output = Output {
                    code: code.parse()?,
                    stdout: text(&mut input, out.parse()?)?,
                    stderr: text(&mut input, err.parse()?)?,
                };
                lock(&shared.state).done.insert(id.parse()?, output);
            }
            ["TAIL", name, offset, length] => {
                let mut bytes = vec![0u8; length.parse()?];
                input.read_exact(&mut bytes)?;
                let offset: usize = offset.parse()?;
                let mut state = lock(&shared.state);
                let tail = state.tails.entry((*name).to_owned()).or_default();
                ensure!(tail.len() == offset, "{name}: a gap in the stream");
                tail.extend_from_slice(&bytes);
                let (now, length) = (Instant::now(), tail.len());
                state.newest.insert((*name).to_owned(), now);
                let arrivals = state.arrivals.entry((*name).to_owned()).or_default();
                arrivals.push((now, length));
                drop(state);
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(live_file(live, name))?
                    .write_all(&bytes)?;
            }
            _ => bail!("cannot understand {header:?}"),
        }
        shared.changed.notify_all();
    }
}

fn live_file(live: &Path, name: &str) -> PathBuf {
    live.join(name.replace('/', "_"))
}

fn text(input: &mut impl Read, length: usize) -> Result<String> {
    let mut bytes = vec![0u8; length];
    input.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

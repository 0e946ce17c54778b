//! Where the memory comes from that arrives late, and with trouble.

use crate::live;
use std::path::PathBuf;
use std::time::Duration;
use vmrestore::dataset::{PageRun, PageSource, PageSourceError};

/// Memory from a slow disk, so that much happens before all of it is there. With a page that is damaged.
pub struct Slow<'a> {
    pub memory: &'a live::Memory,
    pub pause: Duration,
    pub damaged: Option<u64>,
}

/// Memory from a dump that somebody writes to, once a file is there.
pub struct Changing<'a> {
    pub memory: Slow<'a>,
    pub when: PathBuf,
}

impl PageSource for Changing<'_> {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        self.memory.read_pages(run, first, count, out)
    }

    fn still_whole(&self) -> Result<(), String> {
        match self.when.exists() {
            true => Err("the dump was written to".into()),
            false => Ok(()),
        }
    }
}

impl PageSource for Slow<'_> {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        std::thread::sleep(self.pause);
        let begin = run.start + first * 4096;
        if let Some(at) = self.damaged
            && (begin..begin + count * 4096).contains(&at)
        {
            return Err(PageSourceError {
                at,
                content: run.content,
                why: "it is damaged".into(),
            });
        }
        self.memory.read_pages(run, first, count, out)
    }
}

/// Memory of which the stream gets nothing until a file is there; what faults ask for comes at once.
pub struct Stuck<'a> {
    pub memory: &'a live::Memory,
    pub until: PathBuf,
    /// The test's own process, which reads what must be there before the process runs.
    pub test: nix::unistd::Pid,
}

impl PageSource for Stuck<'_> {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        // The pager answers faults from its first thread.
        let (pid, thread) = (nix::unistd::getpid(), nix::unistd::gettid());
        while pid != self.test && thread != pid && !self.until.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.memory.read_pages(run, first, count, out)
    }
}

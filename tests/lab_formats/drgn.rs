//! What drgn reads of a dump, through a pipe: one request a line, the bytes back.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::truth::PAGE;

/// `r FIRST COUNT`: those pages; answers with a byte, and the content if that is 0, else with a line.
/// `x FIRST COUNT`: how many of those pages can be read at all; answers with a line.
const SCRIPT: &str = r"
import sys, drgn
prog = drgn.Program()
out = sys.stdout.buffer
try:
    prog.set_core_dump(sys.argv[1])
    out.write(b'drgn ' + drgn.__version__.encode() + b'\n')
except Exception as e:
    out.write(b'! ' + str(e).replace('\n', ' ').encode() + b'\n')
    sys.exit()
out.flush()
for line in sys.stdin:
    what, first, count = line.split()
    first, count = int(first), int(count)
    if what == 'r':
        try:
            bytes = prog.read(first * 4096, count * 4096, physical=True)
            out.write(b'\0' + bytes)
        except drgn.FaultError as e:
            out.write(b'\1' + str(e).encode() + b'\n')
    else:
        can = 0
        for page in range(first, first + count):
            try:
                prog.read(page * 4096, 8, physical=True)
                can += 1
            except drgn.FaultError:
                pass
        out.write(str(can).encode() + b'\n')
    out.flush()
";

/// A drgn that has opened a dump.
pub struct Drgn {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Drgn {
    /// `python`: one that has drgn.
    pub fn open(python: &Path, dump: &Path) -> Result<Drgn> {
        let mut child = Command::new(python)
            .arg("-c")
            .arg(SCRIPT)
            .arg(dump)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| python.display().to_string())?;
        let (ask, answer) = (child.stdin.take(), child.stdout.take());
        let mut drgn = Drgn {
            child,
            ask: ask.context("stdin")?,
            answer: BufReader::with_capacity(1 << 20, answer.context("stdout")?),
        };
        let hello = drgn.line()?;
        if !hello.starts_with("drgn ") {
            bail!("drgn does not open {}: {hello}", dump.display());
        }
        Ok(drgn)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.answer.read_until(b'\n', &mut line)?;
        ensure!(!line.is_empty(), "drgn has ended");
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Reads whole pages.
    pub fn read(&mut self, first: u64, out: &mut [u8]) -> Result<()> {
        writeln!(self.ask, "r {first} {}", out.len() / PAGE)?;
        let mut failed = [0];
        self.answer.read_exact(&mut failed)?;
        if failed != [0] {
            bail!("drgn cannot read page frame {first:#x}: {}", self.line()?);
        }
        Ok(self.answer.read_exact(out)?)
    }

    /// How many of these pages it can read.
    pub fn readable(&mut self, first: u64, count: u64) -> Result<u64> {
        writeln!(self.ask, "x {first} {count}")?;
        Ok(self.line()?.parse()?)
    }
}

impl Drop for Drgn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

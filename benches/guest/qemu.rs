//! QEMU of Debian 13 with as much of the same memory, saved and loaded by its own `file:` migration with
//! mapped-ram and multifd.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use vmrestore_lab::Lab;
use vmrestore_lab::qmp::Qmp;
use vmrestore_lab::suite::Foreign;

/// QEMU, and what it has saved.
pub struct Saved {
    program: Foreign,
    dir: PathBuf,
    mib: u64,
}

struct Running {
    child: Child,
    qmp: Qmp,
    begun: Instant,
}

impl Saved {
    /// Saves a VM that has the content of `ram` for its memory; that file is removed.
    pub fn new(dir: &Path, ram: &Path, mib: u64) -> Result<Self> {
        let saved = Self {
            program: Foreign::qemu(&Lab::directory().canonicalize()?)?,
            dir: dir.to_owned(),
            mib,
        };
        let memory = format!(
            "memory-backend-file,id=ram,size={mib}M,mem-path={},share=off",
            ram.display()
        );
        let mut source = saved.start(&[&memory], &["-S"])?;
        let to = json!({"uri": format!("file:{}", dir.join("mapped").display())});
        source.qmp.command("migrate", to)?;
        source.finished()?;
        source.end()?;
        std::fs::remove_file(ram)?;
        Ok(saved)
    }

    /// From QEMU's start until it has all of the VM; ms.
    pub fn load(&self) -> Result<f64> {
        let memory = format!("memory-backend-ram,id=ram,size={}M", self.mib);
        let mut destination = self.start(&[&memory], &["-incoming", "defer"])?;
        let from = json!({"uri": format!("file:{}", self.dir.join("mapped").display())});
        destination.qmp.command("migrate-incoming", from)?;
        destination.finished()?;
        let took = destination.begun.elapsed().as_secs_f64() * 1e3;
        destination.end()?;
        Ok(took)
    }

    fn start(&self, objects: &[&str], words: &[&str]) -> Result<Running> {
        let socket = self.dir.join("qmp");
        let _ = std::fs::remove_file(&socket);
        let listening = std::os::unix::net::UnixListener::bind(&socket)?;
        let mut command = self.program.command();
        command
            .args(["-L", "/usr/share/seabios", "-L", "/usr/share/qemu"])
            .args(["-nodefaults", "-display", "none", "-accel", "kvm"])
            .args(["-M", "microvm,memory-backend=ram", "-m"])
            .arg(self.mib.to_string())
            .args(objects.iter().flat_map(|object| ["-object", object]))
            .arg("-qmp")
            .arg(format!("unix:{}", socket.display()))
            .args(words)
            .stderr(Stdio::null());
        let begun = Instant::now();
        let child = command.spawn().context("QEMU")?;
        let (stream, _): (UnixStream, _) = listening.accept()?;
        let mut qmp = Qmp::new(stream)?;
        qmp.greet()?;
        let on = ["mapped-ram", "multifd"];
        let on: Vec<Value> = on
            .iter()
            .map(|name| json!({"capability": name, "state": true}))
            .collect();
        qmp.command("migrate-set-capabilities", json!({"capabilities": on}))?;
        let cpus = std::thread::available_parallelism()?.get();
        let parameters = json!({"multifd-channels": cpus, "max-bandwidth": 1u64 << 40});
        qmp.command("migrate-set-parameters", parameters)?;
        Ok(Running { child, qmp, begun })
    }
}

impl Running {
    fn finished(&mut self) -> Result<()> {
        loop {
            let answer = self.qmp.command("query-migrate", json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed") => anyhow::bail!("QEMU: {answer}"),
                _ => std::thread::sleep(Duration::from_micros(500)),
            }
        }
    }

    fn end(mut self) -> Result<()> {
        self.qmp.command("quit", json!({}))?;
        ensure!(self.child.wait()?.success(), "QEMU");
        Ok(())
    }
}

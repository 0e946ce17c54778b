//! Data of a file that lies in blocks which are the file's no more, kept until it
//! is the file's again.
//!
//! From the first write to the file system on, anything may be given those
//! blocks. So what lay in them is made durable in the journal before that, and
//! a restore that was cut off is made again from there. The journal itself may
//! be on that file system: it is written to memory (/run) first, so that only a
//! power failure in the middle of the journal's own write can lose it, and then
//! nothing of the file was changed.
//!
//! Layout of `rescued-KEY`, little endian: how many bytes were in freed blocks,
//! how many parts; for each part its offset in the file and its length; then
//! the parts' bytes.

use super::{Journal, JournalError, io};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Memory that outlives us, but not this boot.
const MEMORY: &str = "/run/vmrestore";

/// What is not in the file, from where it lay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Offsets in the file, and bytes.
    pub parts: Vec<(u64, Vec<u8>)>,
    /// How many bytes of them were in blocks that are the file's no more.
    pub freed: u64,
}

impl Journal {
    /// Makes it durable before the file system is written to.
    ///
    /// # Errors
    /// `Io`: then nothing must be written.
    pub fn keep_rescued(&self, key: &str, rescued: &Rescued) -> Result<(), JournalError> {
        let memory = self.memory();
        fs::create_dir_all(&memory).map_err(|e| io("create", &memory, e))?;
        for dir in [&memory, &self.dir] {
            let path = dir.join(name(key));
            let temporary = path.with_extension("new");
            write(&temporary, rescued).map_err(|e| io("write", &temporary, e))?;
            fs::rename(&temporary, &path).map_err(|e| io("rename", &path, e))?;
            File::open(dir)
                .and_then(|d| d.sync_all())
                .map_err(|e| io("sync", dir, e))?;
        }
        Ok(())
    }

    /// What an earlier attempt has kept.
    ///
    /// # Errors
    /// `Io` when it is there and cannot be read.
    pub fn rescued(&self, key: &str) -> Result<Option<Rescued>, JournalError> {
        for dir in [&self.dir, &self.memory()] {
            let path = dir.join(name(key));
            match read(&path) {
                Ok(rescued) => return Ok(Some(rescued)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(io("read", &path, e)),
            }
        }
        Ok(None)
    }

    /// It is the file's again.
    pub(super) fn forget_rescued(&self, key: &str) -> Result<(), JournalError> {
        for dir in [&self.dir, &self.memory()] {
            let path = dir.join(name(key));
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("remove", &path, e)),
                _ => {}
            }
        }
        // Of other files there may be more.
        let _ = fs::remove_dir(self.memory());
        Ok(())
    }

    /// Of this journal alone: another state directory has its own.
    fn memory(&self) -> PathBuf {
        let (device, inode) = fs::metadata(&self.dir).map_or((0, 0), |m| (m.dev(), m.ino()));
        Path::new(MEMORY).join(format!("{}-{device}-{inode}", self.crash))
    }
}

fn name(key: &str) -> String {
    format!("rescued-{key}")
}

fn write(path: &Path, rescued: &Rescued) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut number = |n: u64| file.write_all(&n.to_le_bytes());
    number(rescued.freed)?;
    number(rescued.parts.len() as u64)?;
    for (at, bytes) in &rescued.parts {
        number(*at)?;
        number(bytes.len() as u64)?;
    }
    for (_, bytes) in &rescued.parts {
        file.write_all(bytes)?;
    }
    file.into_inner()?.sync_all()
}

fn read(path: &Path) -> std::io::Result<Rescued> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let mut number = || {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes)?;
        Ok::<u64, std::io::Error>(u64::from_le_bytes(bytes))
    };
    let (freed, count) = (number()?, number()?);
    let damaged = || std::io::Error::new(ErrorKind::InvalidData, "it does not hold what it says");
    if count > size / 16 {
        return Err(damaged());
    }
    let mut places = Vec::new();
    let mut bytes = 0u64;
    for _ in 0..count {
        let (at, len) = (number()?, number()?);
        bytes = bytes.saturating_add(len);
        places.push((at, len));
    }
    if bytes > size {
        return Err(damaged());
    }
    let mut parts = Vec::new();
    for (at, len) in places {
        let mut part = vec![0; usize::try_from(len).map_err(|_| damaged())?];
        file.read_exact(&mut part)?;
        parts.push((at, part));
    }
    Ok(Rescued { parts, freed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_from_either_place() {
        let dir = std::env::temp_dir().join(format!("vmrestore-kept-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("rescued-k");
        let kept = Rescued {
            parts: vec![(8192, vec![7; 4096]), (65536, vec![9; 100])],
            freed: 4096,
        };
        write(&path, &kept).expect("writes");
        assert_eq!(read(&path).expect("reads"), kept);
        // Cut, and with a length that no file has.
        let whole = fs::read(&path).expect("reads");
        fs::write(&path, &whole[..whole.len() - 1]).expect("cuts");
        read(&path).expect_err("cut");
        let mut lies = whole;
        lies[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&path, &lies).expect("damages");
        read(&path).expect_err("damaged");
        fs::remove_dir_all(&dir).expect("cleans up");
    }
}

//! An initramfs without `cpio` and without root: the "newc" format.
//!
//! Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// An archive that grows in memory.
pub struct Cpio {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Cpio {
    /// An archive with what every early user space needs: `/dev/console` and
    /// the mount points.
    #[must_use]
    pub fn new() -> Self {
        let mut cpio = Self {
            bytes: Vec::new(),
            directories: BTreeSet::new(),
            inode: 1,
        };
        for dir in ["dev", "proc", "sys", "tmp", "new", "dump"] {
            cpio.directory(dir);
        }
        cpio.entry("dev/console", CHARACTER_DEVICE, &[], (5, 1));
        cpio
    }

    /// A copy of the file `from` at `path`, with its executable bits.
    pub fn file(&mut self, path: &str, from: &Path) -> Result<()> {
        let content = std::fs::read(from).with_context(|| from.display().to_string())?;
        let mode = std::fs::metadata(from)?.permissions().mode();
        self.bytes(path, &content, mode & 0o111 != 0);
        Ok(())
    }

    /// A file with these bytes.
    pub fn bytes(&mut self, path: &str, content: &[u8], executable: bool) {
        let path = path.trim_start_matches('/');
        self.parents(path);
        let mode = if executable { 0o100_755 } else { 0o100_644 };
        self.entry(path, mode, content, (0, 0));
    }

    /// A symbolic link at `path`.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, SYMLINK, target.as_bytes(), (0, 0));
    }

    /// The archive, closed.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.directory(&path[..at]);
        }
    }

    fn directory(&mut self, path: &str) {
        if !path.is_empty() && self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, &[], (0, 0));
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

impl Default for Cpio {
    fn default() -> Self {
        Self::new()
    }
}

//! An initramfs: the "newc" format.
//!
//! Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Links that follow each other at most, as in a path walk of Linux.
const MOST_LINKS: u32 = 40;

/// An archive that grows in memory.
#[derive(Debug, Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    there: BTreeSet<PathBuf>,
    inode: u32,
}

impl Cpio {
    /// An archive with `/dev/console`, without which its first program has no output.
    pub fn new() -> Self {
        let mut cpio = Self::default();
        cpio.directory(Path::new("/dev"));
        cpio.entry(
            Path::new("/dev/console"),
            CHARACTER_DEVICE,
            0,
            &[],
            [0, 0, 5, 1],
        );
        cpio
    }

    /// Bytes of its content.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether something was put at a path.
    pub fn has(&self, path: &Path) -> bool {
        self.there.contains(path)
    }

    /// A file of this host at its path, with the links that lead to it. Gives the path that it has when
    /// no link is followed.
    ///
    /// # Errors
    /// It cannot be read, or is no file.
    pub fn host_file(&mut self, path: &Path) -> io::Result<PathBuf> {
        let real = self.links_to(path)?;
        if !self.has(&real) {
            let content = fs::read(&real)?;
            self.file(&real, &content, &fs::metadata(&real)?)?;
        }
        Ok(real)
    }

    /// A file at `path` with this content, and the owner, mode and times of another.
    ///
    /// # Errors
    /// It is too long for the format.
    pub fn file(&mut self, path: &Path, content: &[u8], like: &fs::Metadata) -> io::Result<()> {
        if u32::try_from(content.len()).is_err() {
            return Err(io::Error::other("too long for an initramfs"));
        }
        let mode = FILE | like.permissions().mode() & 0o7777;
        let mtime = u32::try_from(like.mtime()).unwrap_or(0);
        self.parents(path);
        self.entry(path, mode, mtime, content, [like.uid(), like.gid(), 0, 0]);
        Ok(())
    }

    /// A text that only root changes.
    pub fn text(&mut self, path: &Path, content: &str) {
        self.parents(path);
        self.entry(path, FILE | 0o644, 0, content.as_bytes(), [0; 4]);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &Path, target: &Path) {
        self.parents(path);
        let target = target.as_os_str().as_encoded_bytes();
        self.entry(path, SYMLINK, 0, target, [0; 4]);
    }

    /// A directory, and those above it.
    pub fn directory(&mut self, path: &Path) {
        self.parents(path);
        if path.parent().is_some() && !self.has(path) {
            self.entry(path, DIRECTORY, 0, &[], [0; 4]);
        }
    }

    /// The archive, closed.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("TRAILER!!!"), 0, 0, &[], [0; 4]);
        self.bytes
    }

    /// Puts every link that a path of this host leads through where it is; gives where it ends.
    fn links_to(&mut self, path: &Path) -> io::Result<PathBuf> {
        let mut rest: Vec<_> = path.components().rev().map(to_owned).collect();
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_os_str().to_str() {
                Some("/") => at = PathBuf::from("/"),
                Some("..") => {
                    at.pop();
                }
                Some(".") => {}
                _ => {
                    let next = at.join(&part);
                    match fs::read_link(&next) {
                        Ok(target) => {
                            links += 1;
                            if links > MOST_LINKS {
                                return Err(io::Error::other("too many links"));
                            }
                            if !self.has(&next) {
                                self.link(&next, &target);
                            }
                            rest.extend(target.components().rev().map(to_owned));
                        }
                        Err(_) => at = next,
                    }
                }
            }
        }
        Ok(at)
    }

    fn parents(&mut self, path: &Path) {
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for directory in above.into_iter().rev() {
            if directory.parent().is_some() && !self.has(directory) {
                self.entry(directory, DIRECTORY, 0, &[], [0; 4]);
            }
        }
    }

    /// `numbers`: owner, group, and of a device its major and minor.
    fn entry(&mut self, path: &Path, mode: u32, mtime: u32, content: &[u8], numbers: [u32; 4]) {
        self.there.insert(path.to_owned());
        self.inode += 1;
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str();
        let name = name.as_encoded_bytes();
        let [uid, gid, major, minor] = numbers;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            self.inode, mode, uid, gid, 1, mtime, size, 0, 0, major, minor, name_size, 0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn to_owned(part: Component<'_>) -> PathBuf {
    PathBuf::from(part.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn links_are_followed_and_kept_and_every_directory_is_there_once() {
        let dir = std::env::temp_dir().join(format!("vmrestore-cpio-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("usr/lib")).expect("makes");
        fs::write(dir.join("usr/lib/libx.so.1.2"), "content").expect("writes");
        std::os::unix::fs::symlink("libx.so.1.2", dir.join("usr/lib/libx.so.1")).expect("links");
        std::os::unix::fs::symlink("usr/lib", dir.join("lib")).expect("links");
        let mut cpio = Cpio::new();
        let real = cpio.host_file(&dir.join("lib/libx.so.1")).expect("packs");
        assert_eq!(real, dir.join("usr/lib/libx.so.1.2"));
        let before = cpio.len();
        cpio.host_file(&dir.join("lib/libx.so.1")).expect("packs");
        assert_eq!(cpio.len(), before, "it was there");
        cpio.directory(Path::new("/run/some/where"));
        for path in ["lib", "usr/lib/libx.so.1", "usr", "usr/lib"] {
            assert!(cpio.has(&dir.join(path)), "{path}");
        }
        let bytes = cpio.finish();
        fs::remove_dir_all(&dir).expect("cleans up");
        // The judge is another reader of the format, where there is one.
        let listing = Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        if let Ok(mut child) = listing {
            let mut input = child.stdin.take().expect("piped");
            io::Write::write_all(&mut input, &bytes).expect("writes");
            drop(input);
            let output = child.wait_with_output().expect("ends");
            let names = String::from_utf8_lossy(&output.stdout);
            assert!(names.lines().any(|l| l == "run/some/where"), "{names}");
            assert!(names.lines().any(|l| l.ends_with("libx.so.1.2")), "{names}");
        } else {
            eprintln!("skipped: there is no cpio here to list the archive with");
        }
    }
}

//! The initramfs by which guests go on without a root file system. Its first program is vmrestore.

use super::cpio::Cpio;
use super::modules;
use super::plan::{self, Image, Plan, PlannedFile};
use super::programs;
use crate::cli::exit::{Exit, Failure};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where vmrestore is in it.
pub const VMRESTORE: &str = "/usr/sbin/vmrestore";
/// Where modules are in it: unpacked, one beside the other.
pub const MODULES: &str = "/usr/lib/modules/in-place";
/// Where makedumpfile is in it.
pub const MAKEDUMPFILE: &str = "/usr/bin/makedumpfile";
/// Where the loader finds libraries.
const LOADER_CACHE: &str = "/etc/ld.so.cache";

/// What is put in beside what the plan says.
#[derive(Debug, Default)]
pub struct Extra {
    pub programs: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
}

/// Writes the initramfs of a plan, and notes in the plan what is in it. Gives what is not.
///
/// # Errors
/// A file cannot be read, or the image not written.
pub fn write(plan: &mut Plan, to: &Path, extra: &Extra) -> Result<Vec<String>, Failure> {
    let mut lacking = Vec::new();
    let mut cpio = Cpio::new();
    for directory in [
        "/proc",
        "/sys",
        "/run",
        "/tmp",
        "/var",
        "/root",
        "/mnt",
        "/usr/bin",
        "/usr/sbin",
        "/usr/lib",
    ] {
        cpio.directory(Path::new(directory));
    }
    // /bin, /lib and their like are links on a system whose /usr is merged.
    for name in ["/bin", "/sbin", "/lib", "/lib64"] {
        if let Ok(target) = fs::read_link(name) {
            cpio.link(Path::new(name), &target);
        }
    }
    let failed = |what: &Path, e: io::Error| {
        Failure::new(
            Exit::Failed,
            format!("{}: {e}", what.display()),
            "nothing was written",
        )
    };
    let mounted = |path: &Path| {
        let mut binds = plan.mounts.iter().flat_map(|m| &m.binds);
        binds.any(|(_, at)| path.starts_with(at))
    };
    let mut packed = BTreeSet::new();
    for file in plan.files.iter().filter(|f| !mounted(&f.path)) {
        let real = cpio
            .host_file(&file.path)
            .map_err(|e| failed(&file.path, e))?;
        packed.insert(file.path.clone());
        packed.insert(real);
    }
    for file in &mut plan.files {
        file.packed = packed.contains(&file.path);
    }
    let me = std::env::current_exe().map_err(|e| failed(Path::new("vmrestore"), e))?;
    program(&mut cpio, &me, Some(VMRESTORE)).map_err(|e| failed(&me, e))?;
    cpio.link(Path::new("/init"), Path::new(VMRESTORE));
    match programs::first_of(&["/usr/bin/makedumpfile", "/usr/sbin/makedumpfile"]) {
        _ if plan.save.directory.is_none() => {}
        Some(found) => {
            program(&mut cpio, &found, Some(MAKEDUMPFILE)).map_err(|e| failed(&found, e))?
        }
        None => lacking.push("makedumpfile is not on this host: no dump is saved".into()),
    }
    for path in &extra.programs {
        program(&mut cpio, path, None).map_err(|e| failed(path, e))?;
    }
    for path in &extra.files {
        with_all_below(&mut cpio, path).map_err(|e| failed(path, e))?;
    }
    if Path::new(LOADER_CACHE).exists() {
        let cache = Path::new(LOADER_CACHE);
        cpio.host_file(cache).map_err(|e| failed(cache, e))?;
    }
    // Last: a program of the host is not hidden by busybox.
    match programs::first_of(&["/bin/busybox", "/usr/bin/busybox"]) {
        Some(found) => shell(&mut cpio, &found).map_err(|e| failed(&found, e))?,
        None => lacking.push("busybox is not on this host: no shell in it".into()),
    }
    for module in &plan.modules {
        let content = modules::read(&module.path).map_err(|e| failed(&module.path, e))?;
        let like = fs::metadata(&module.path).map_err(|e| failed(&module.path, e))?;
        let at = Path::new(MODULES).join(format!("{}.ko", module.name));
        cpio.file(&at, &content, &like)
            .map_err(|e| failed(&at, e))?;
    }
    for directory in &plan.directories {
        cpio.directory(directory);
    }
    for (_, at) in plan.mounts.iter().flat_map(|m| &m.binds) {
        cpio.directory(at);
    }
    plan.initramfs = Some(Image {
        path: to.to_owned(),
        size: 0,
        unpacked: cpio.len(),
    });
    cpio.text(Path::new(plan::DEFAULT), &plan.text());
    let bytes = gzip(&cpio.finish()).map_err(|e| failed(to, e))?;
    if let Some(image) = &mut plan.initramfs {
        image.size = bytes.len() as u64;
    }
    plan::write_durably(to, &bytes).map_err(|e| failed(to, e))?;
    Ok(lacking)
}

/// A file's size and time of change.
///
/// # Errors
/// It cannot be looked at.
pub fn facts(path: &Path) -> io::Result<PlannedFile> {
    let now = fs::metadata(path)?;
    Ok(PlannedFile {
        path: path.to_owned(),
        size: now.size(),
        mtime_ns: now
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(now.mtime_nsec()),
        packed: false,
    })
}

/// A program with all that it needs, at its own path or at another, without what only debuggers read.
fn program(cpio: &mut Cpio, path: &Path, at: Option<&str>) -> io::Result<()> {
    for needed in programs::needs(path)? {
        cpio.host_file(&needed)?;
    }
    let Some(at) = at else {
        return cpio.host_file(path).map(drop);
    };
    let content = programs::without_debug_information(&fs::read(path)?);
    if !cpio.has(Path::new(at)) {
        cpio.file(Path::new(at), &content, &fs::metadata(path)?)?;
    }
    Ok(())
}

/// Busybox under all its names, for whoever has to look.
fn shell(cpio: &mut Cpio, busybox: &Path) -> io::Result<()> {
    const AT: &str = "/usr/bin/busybox";
    program(cpio, busybox, Some(AT))?;
    let listed = Command::new(busybox).arg("--list").output()?;
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    for name in names.split_whitespace().chain(["sh"]) {
        let path = Path::new("/usr/bin").join(name);
        if !cpio.has(&path) {
            cpio.link(&path, Path::new(AT));
        }
    }
    if !cpio.has(Path::new("/bin")) {
        cpio.link(Path::new("/bin/sh"), Path::new(AT));
    }
    Ok(())
}

fn with_all_below(cpio: &mut Cpio, path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return cpio.host_file(path).map(drop);
    }
    cpio.directory(path);
    for entry in fs::read_dir(path)? {
        with_all_below(cpio, &entry?.path())?;
    }
    Ok(())
}

/// Packed so that every kernel unpacks it.
fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let level = libdeflater::CompressionLvl::fastest();
    let mut compressor = libdeflater::Compressor::new(level);
    let mut out = vec![0; compressor.gzip_compress_bound(bytes.len())];
    let size = compressor
        .gzip_compress(bytes, &mut out)
        .map_err(|e| io::Error::other(e.to_string()))?;
    out.truncate(size);
    Ok(out)
}

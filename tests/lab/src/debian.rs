//! Debian's own files for the lab's host: what this machine has installed is
//! used as it is, the rest comes out of packages, unpacked and never installed.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::suite::Foreign;

/// Packages unpacked when a file of them is not installed here. The libraries
/// are those that kexec-tools and makedumpfile link.
const PACKAGES: [&str; 23] = [
    "busybox-static",
    "kexec-tools",
    "makedumpfile",
    "libxenmisc4.17",
    "libxentoollog1",
    "libxencall1",
    "libxenevtchn1",
    "libxengnttab1",
    "libxenforeignmemory1",
    "libxendevicemodel1",
    "libxentoolcore1",
    "liblzo2-2",
    "libdw1",
    "libelf1",
    "liblzma5",
    "libbz2-1.0",
    "xfsprogs",
    "libinih1",
    "liburcu8",
    "dmsetup",
    "libdevmapper1.02.1",
    "qemu-utils",
    "ovmf",
];

/// The kernel's metapackage: Debian 12's 6.1 for clouds, which has KVM, BTF
/// and few modules.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// The same for any machine, which has what the other was built without, zswap say.
const GENERIC_PACKAGE: &str = "linux-image-amd64";

/// Which of Debian's kernels the host has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    Cloud,
    Generic,
    /// The cloud kernel of a newer suite.
    Newer,
    /// The same, on a host whose guests have Debian 12's: it was updated.
    Updated,
}

/// Where Debian's files are found.
pub struct Debian {
    unpacked: PathBuf,
    choice: Choice,
}

/// One kernel: its image and its directory of modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// `vmlinuz`, as the boot loader would take it.
    pub image: PathBuf,
    /// `lib/modules/RELEASE/kernel`.
    pub modules: PathBuf,
    /// `uname -r`.
    pub release: String,
}

impl Debian {
    /// Files come from this machine, else from packages unpacked below `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            unpacked: dir.join("packages"),
            choice: Choice::Cloud,
        }
    }

    /// The same, with the kernel for any machine.
    #[must_use]
    pub fn generic(dir: &Path) -> Self {
        Self {
            choice: Choice::Generic,
            ..Self::new(dir)
        }
    }

    /// The same, with the cloud kernel of Debian 13, or of `$VMRESTORE_LAB_SUITE`.
    #[must_use]
    pub fn newer(dir: &Path) -> Self {
        Self {
            choice: Choice::Newer,
            ..Self::new(dir)
        }
    }

    /// Debian 12's, of which the kernel was updated since.
    #[must_use]
    pub fn updated(dir: &Path) -> Self {
        Self {
            choice: Choice::Updated,
            ..Self::new(dir)
        }
    }

    /// The kernel of the guests, and of the capture environment.
    pub fn older_kernel(&self) -> Result<Kernel> {
        match self.choice {
            Choice::Updated => Self::new(self.lab()).kernel(),
            _ => self.kernel(),
        }
    }

    /// The file that a Debian host would have at `path`. With
    /// `$VMRESTORE_LAB_UNPACK` set, from a package even if it is installed
    /// here: how it is on a fresh machine.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        let here = Path::new(path);
        let unpack = std::env::var_os("VMRESTORE_LAB_UNPACK").is_some()
            && !path.contains("qemu-system")
            && !path.starts_with("/usr/share");
        let suits = here.exists() && !unpack && (path != "/bin/busybox" || is_static(here));
        if suits {
            return Ok(here.to_owned());
        }
        self.unpack_tools()?;
        let relative = path.trim_start_matches('/');
        // Packages of Debian 12 still say /bin and /sbin where an installed
        // system has merged them into /usr.
        for candidate in [relative, relative.trim_start_matches("usr/")] {
            let unpacked = self.tools().join(candidate);
            if unpacked.exists() {
                return Ok(unpacked);
            }
        }
        bail!("{path}: neither on this machine nor in {PACKAGES:?} (run scripts/setup?)")
    }

    /// The program that a Debian host would have at `path`, to be run here.
    pub fn command(&self, path: &str) -> Result<Command> {
        let mut command = Command::new(self.file(path)?);
        command.env("LD_LIBRARY_PATH", self.library_path());
        Ok(command)
    }

    fn library_path(&self) -> String {
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|dir| self.tools().join(dir).display().to_string())
            .join(":")
    }

    /// The shared libraries that `program` needs: (path inside the host, file).
    pub fn libraries(&self, program: &Path) -> Result<Vec<(String, PathBuf)>> {
        let root = self.tools();
        let output = Command::new("ldd")
            .arg(program)
            .env("LD_LIBRARY_PATH", self.library_path())
            .output()
            .context("ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut libraries = Vec::new();
        for line in text.lines() {
            ensure!(
                !line.contains("not found"),
                "{}: {} (a package is missing in the lab's list)",
                program.display(),
                line.trim()
            );
            let Some(file) = line.split_whitespace().find(|word| word.starts_with('/')) else {
                continue;
            };
            let file = PathBuf::from(file);
            let inside = match file.strip_prefix(&root) {
                Ok(inside) => format!("/{}", inside.display()),
                Err(_) => file.display().to_string(),
            };
            libraries.push((inside, file));
        }
        Ok(libraries)
    }

    /// Debian 12's cloud kernel, or the unpacked package at
    /// `$VMRESTORE_LAB_KERNEL`, or what was asked for.
    pub fn kernel(&self) -> Result<Kernel> {
        let (from, to) = match (self.choice, std::env::var_os("VMRESTORE_LAB_KERNEL")) {
            (Choice::Newer | Choice::Updated, _) => {
                return Kernel::in_package(&Foreign::kernel(self.lab(), KERNEL_PACKAGE)?);
            }
            (Choice::Generic, _) => (GENERIC_PACKAGE, "kernel-generic"),
            (Choice::Cloud, Some(dir)) => return Kernel::in_package(Path::new(&dir)),
            (Choice::Cloud, None) => (KERNEL_PACKAGE, "kernel"),
        };
        let dir = self.unpacked.join(to);
        if !dir.join("boot").exists() {
            let depends = run(Command::new("apt-cache").args(["depends", from]))?;
            let package = image_of(from, &depends)?;
            self.unpack(&[&package], &dir)?;
        }
        Kernel::in_package(&dir)
    }

    /// The headers of the kernel `release`, of the package version that its
    /// image has, unpacked; `arrange` is called once, with their root.
    pub(crate) fn unpacked_headers(
        &self,
        release: &str,
        arrange: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let to = self.unpacked.join(format!("headers-{release}"));
        if to.exists() {
            return Ok(to);
        }
        let package = format!("linux-headers-{release}");
        let depends = run(Command::new("apt-cache").args(["depends", &package]))?;
        let mut packages: Vec<&str> = depends
            .split_whitespace()
            .filter(|word| word.starts_with("linux-headers-") || word.starts_with("linux-kbuild-"))
            .collect();
        packages.push(&package);
        packages.sort_unstable();
        packages.dedup();
        let work = to.with_extension(format!("arranged{}", std::process::id()));
        self.unpack(&packages, &work)?;
        arrange(&work)?;
        match std::fs::rename(&work, &to) {
            Ok(()) => Ok(to),
            // Another run of the lab was faster.
            Err(_) if to.exists() => {
                std::fs::remove_dir_all(&work)?;
                Ok(to)
            }
            Err(error) => Err(error).with_context(|| to.display().to_string()),
        }
    }

    /// Compiles a profile of AppArmor's into what a kernel loads, at `to`.
    pub fn compile_policy(&self, profile: &str, to: &Path) -> Result<()> {
        let home = self.unpacked.join("apparmor");
        if !home.exists() {
            self.unpack(&["apparmor"], &home)?;
        }
        let source = to.with_extension("profile");
        std::fs::write(&source, profile).with_context(|| source.display().to_string())?;
        let base = home.join("etc/apparmor.d");
        run(Command::new(home.join("sbin/apparmor_parser"))
            .args(["--skip-kernel-load", "--skip-read-cache", "--quiet"])
            .arg("--base")
            .arg(&base)
            .arg("--Include")
            .arg(&base)
            // This machine's kernel may know nothing of AppArmor.
            .arg("--kernel-features")
            .arg(base.join("abi/3.0"))
            .arg("--ofile")
            .arg(to)
            .arg(&source))?;
        Ok(std::fs::remove_file(source)?)
    }

    fn unpack_tools(&self) -> Result<()> {
        let root = self.tools();
        if root.exists() {
            return Ok(());
        }
        self.unpack(&PACKAGES, &root)
    }

    /// Where [`PACKAGES`] are unpacked: another list of them, another place.
    fn tools(&self) -> PathBuf {
        let mut list = DefaultHasher::new();
        PACKAGES.hash(&mut list);
        self.unpacked.join(format!("root-{:016x}", list.finish()))
    }

    /// The lab's directory.
    pub(crate) fn lab(&self) -> &Path {
        self.unpacked.parent().unwrap_or(&self.unpacked)
    }

    /// Gets packages from the machine's own package sources and unpacks them
    /// into `to`, which appears only when all is there.
    fn unpack(&self, packages: &[&str], to: &Path) -> Result<()> {
        let work = to.with_extension(format!("work{}", std::process::id()));
        std::fs::create_dir_all(&work)?;
        let debs = work.with_extension("debs");
        std::fs::create_dir_all(&debs)?;
        eprintln!("lab: getting packages: {}", packages.join(" "));
        run(Command::new("apt-get")
            .arg("download")
            .args(packages)
            .current_dir(&debs))
        .context("apt-get download failed (are the package lists there? apt-get update)")?;
        for entry in std::fs::read_dir(&debs)? {
            run(Command::new("dpkg-deb")
                .arg("-x")
                .arg(entry?.path())
                .arg(&work))?;
        }
        std::fs::remove_dir_all(&debs)?;
        match std::fs::rename(&work, to) {
            Ok(()) => Ok(()),
            // Another run of the lab was faster.
            Err(_) if to.exists() => Ok(std::fs::remove_dir_all(&work)?),
            Err(error) => Err(error).with_context(|| to.display().to_string()),
        }
    }
}

impl Kernel {
    fn in_package(dir: &Path) -> Result<Self> {
        let boot = dir.join("boot");
        let release = std::fs::read_dir(&boot)
            .with_context(|| boot.display().to_string())?
            .flatten()
            .find_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                name.strip_prefix("vmlinuz-").map(str::to_owned)
            })
            .with_context(|| format!("{}: no vmlinuz-*", boot.display()))?;
        // Below /usr from Debian 13 on.
        let modules = ["usr/lib/modules", "lib/modules"]
            .map(|modules| dir.join(modules).join(&release).join("kernel"));
        let modules = modules.into_iter().find(|modules| modules.exists());
        Ok(Self {
            image: boot.join(format!("vmlinuz-{release}")),
            modules: modules.with_context(|| format!("{}: no modules", dir.display()))?,
            release,
        })
    }

    /// The file of the module at `path` (without suffix) in the kernel's tree; `None` if the
    /// kernel has it built in.
    pub fn module(&self, path: &str) -> Result<Option<PathBuf>> {
        let file = self.modules.join(format!("{path}.ko"));
        if file.exists() {
            return Ok(Some(file));
        }
        let list = self.modules.with_file_name("modules.builtin");
        let text = std::fs::read_to_string(&list).with_context(|| list.display().to_string())?;
        let built_in = format!("kernel/{path}.ko");
        ensure!(
            text.lines().any(|line| line == built_in),
            "{}: neither a module nor built in",
            file.display()
        );
        Ok(None)
    }
}

/// The package with the image, of what `apt-cache depends` says of the metapackage `from`.
pub(crate) fn image_of(from: &str, depends: &str) -> Result<String> {
    let named = depends.split_whitespace();
    named
        .filter(|word| word.starts_with("linux-image-") && *word != from)
        .map(str::to_owned)
        .next()
        .with_context(|| format!("{from} names no kernel: {depends}"))
}

/// Unpacks the modules that a package has packed (from 6.12 on).
pub(crate) fn unpack_modules(root: &Path) -> Result<()> {
    let mut dirs = vec![root.to_owned()];
    let mut packed = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else if entry.file_name().as_encoded_bytes().ends_with(b".ko.xz") {
                packed.push(entry.path());
            }
        }
    }
    for some in packed.chunks(100) {
        run(Command::new("xz").arg("--decompress").args(some))
            .context("xz (run scripts/setup?)")?;
    }
    Ok(())
}

/// True if the program needs no dynamic linker.
fn is_static(program: &Path) -> bool {
    Command::new("ldd")
        .arg(program)
        .output()
        .is_ok_and(|output| !output.status.success())
}

/// Runs a command to its end; its stdout, or an error with all it said.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! Packages of Debian's with all that they need, as an installed system has them: the tree
//! below a host's root on which applications run. Nothing is installed on this machine, and
//! nothing here is run: what the packages' own scripts would do is done by hand.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::debian::run;
use crate::suite::Apt;

/// The suite of the host's own programs.
const SUITE: &str = "bookworm";
/// Raised when the same packages are arranged differently.
const ARRANGED: u32 = 3;
/// What no application reads and would only fill the disk.
const LEFT_OUT: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/i18n",
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl",
];
/// What a package's script, or the system's first set-up, writes.
const WRITTEN: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
         postgres:x:101:104:PostgreSQL administrator:/var/lib/postgresql:/bin/bash\n\
         redis:x:102:105::/var/lib/redis:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nadm:x:4:\ntty:x:5:\nutmp:x:43:\nwww-data:x:33:\n\
         nogroup:x:65534:\npostgres:x:104:\nredis:x:105:\n",
    ),
    (
        "etc/hosts",
        "127.0.0.1 localhost\n127.0.1.1 labhost\n::1 localhost ip6-localhost\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\n",
    ),
    ("var/www/html/index.html", "nginx on the lab's host\n"),
];
/// Links that update-alternatives and the packages' scripts make: (link, where it leads).
const LINKS: [(&str, &str); 8] = [
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
    ("usr/bin/awk", "gawk"),
    (
        "usr/bin/java",
        "/usr/lib/jvm/java-17-openjdk-amd64/bin/java",
    ),
    (
        "etc/nginx/sites-enabled/default",
        "/etc/nginx/sites-available/default",
    ),
    ("usr/lib/x86_64-linux-gnu/libblas.so.3", "blas/libblas.so.3"),
    (
        "usr/lib/x86_64-linux-gnu/liblapack.so.3",
        "lapack/liblapack.so.3",
    ),
    ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
];

/// A tree of unpacked packages.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Where it is.
    pub root: PathBuf,
    /// Digest of what it was made of.
    pub key: String,
}

impl Installed {
    /// The packages with all that they depend on, from the cache below `lab` or got now.
    pub fn get(lab: &Path, packages: &[&str]) -> Result<Self> {
        let mut hasher = DefaultHasher::new();
        (SUITE, ARRANGED, packages, LEFT_OUT, WRITTEN, LINKS).hash(&mut hasher);
        let key = format!("{:016x}", hasher.finish());
        let root = lab.join("packages").join(format!("installed-{key}"));
        if !root.exists() {
            get(packages, &root).context("Debian's packages for the applications")?;
        }
        Ok(Self { root, key })
    }

    /// MiB of all its files.
    pub fn mib(&self) -> Result<u64> {
        let said = run(Command::new("du").arg("-sm").arg(&self.root))?;
        let word = said.split_whitespace().next().context("du says nothing")?;
        word.parse().with_context(|| said.clone())
    }

    /// Copies the tree to `stage`, which must be there.
    pub fn copy_to(&self, stage: &Path) -> Result<()> {
        let all = self.root.join(".");
        run(Command::new("cp").arg("-a").arg(all).arg(stage)).map(drop)
    }
}

fn get(packages: &[&str], home: &Path) -> Result<()> {
    let work = home.with_extension(format!("work{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&work);
    let root = work.join("root");
    std::fs::create_dir_all(&root)?;
    eprintln!(
        "lab: getting packages and what they need: {}",
        packages.join(" ")
    );
    let debs = Apt::of_suite(SUITE, &work.join("apt"))?.download_with_all_needed(packages)?;
    ensure!(!debs.is_empty(), "apt-get has got nothing");
    // The merged /usr, before anything is unpacked into it.
    for dir in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(root.join("usr").join(dir))?;
        symlink(format!("usr/{dir}"), root.join(dir))?;
    }
    for deb in &debs {
        unpack(deb, &root).with_context(|| deb.display().to_string())?;
    }
    arrange(&root)?;
    match std::fs::rename(&root, home) {
        Ok(()) => {}
        // Another run of the lab was faster.
        Err(_) if home.exists() => {}
        Err(error) => return Err(error).with_context(|| home.display().to_string()),
    }
    Ok(std::fs::remove_dir_all(&work)?)
}

/// As `dpkg-deb -x`, which would put a directory in the place of the link `bin`.
fn unpack(deb: &Path, root: &Path) -> Result<()> {
    let mut packed = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()?;
    let tar = packed.stdout.take().context("no pipe from dpkg-deb")?;
    let unpacked = Command::new("tar")
        .args(["-x", "--keep-directory-symlink", "-C"])
        .arg(root)
        .stdin(tar)
        .status()?;
    let packed = packed.wait()?;
    ensure!(
        packed.success() && unpacked.success(),
        "{packed}, {unpacked}"
    );
    Ok(())
}

fn arrange(root: &Path) -> Result<()> {
    for dir in LEFT_OUT {
        let _ = std::fs::remove_dir_all(root.join(dir));
    }
    for (path, text) in WRITTEN {
        let to = root.join(path);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&to, text).with_context(|| path.to_owned())?;
    }
    for (path, target) in LINKS {
        let link = root.join(path);
        if let Some(parent) = link.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let _ = std::fs::remove_dir(&link);
        let _ = std::fs::remove_file(&link);
        symlink(target, &link).with_context(|| path.to_owned())?;
    }
    let ldconfig = ["/usr/sbin/ldconfig", "/sbin/ldconfig"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("no ldconfig on this machine")?;
    run(Command::new(ldconfig).arg("-r").arg(root)).map(drop)
}

//! The host's images: its root, its initramfs, the capture kernel's and the
//! guest's. Built without root and without mounting: `mke2fs -d` and a cpio
//! writer.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::cpio::Cpio;
use crate::debian::{Debian, Kernel, run};
use crate::installed::Installed;
use crate::programs::Programs;
use crate::suite::Foreign;

/// Loaded in this order before any disk can be seen.
const VIRTIO: [&str; 6] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
];
/// And these, where ext4 is a module too, as in the kernel for any machine.
const EXT4: [&str; 5] = [
    "lib/crc16",
    "crypto/crc32c_generic",
    "fs/mbcache",
    "fs/jbd2/jbd2",
    "fs/ext4/ext4",
];
/// Loaded by the host's agent.
const HOST_MODULES: [&str; 20] = [
    "virt/lib/irqbypass",
    "arch/x86/kvm/kvm",
    "arch/x86/kvm/kvm-amd",
    "drivers/firmware/qemu_fw_cfg",
    "drivers/char/virtio_console",
    "drivers/net/tun",
    "drivers/net/tap",
    "drivers/vhost/vhost_iotlb",
    "drivers/vhost/vhost",
    "drivers/vhost/vhost_net",
    "net/llc/llc",
    "net/802/stp",
    "net/bridge/bridge",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "drivers/vhost/vhost_vsock",
    "lib/libcrc32c",
    "fs/xfs/xfs",
    "drivers/block/loop",
    "drivers/md/dm-mod",
];
/// Loaded by the small guest beside virtio's own: the power button, and what hangs on virtio.
const GUEST_MODULES: [&str; 13] = [
    "drivers/virtio/virtio_mmio",
    "drivers/acpi/button",
    "drivers/input/evdev",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/char/virtio_console",
    "drivers/char/hw_random/virtio-rng",
    "drivers/virtio/virtio_balloon",
    "drivers/scsi/scsi_common",
    "drivers/scsi/scsi_mod",
    "drivers/scsi/virtio_scsi",
    "drivers/scsi/sd_mod",
];

/// What Debian's QEMU reads for `-M pc`, `q35` and `microvm` with `-kernel`.
const FIRMWARE: [&str; 11] = [
    "/usr/share/qemu/qboot.rom",
    "/usr/share/qemu/linuxboot.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/multiboot.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/seabios/vgabios-stdvga.bin",
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.fd",
];
/// Debian's programs in the host.
const HOST_PROGRAMS: [&str; 6] = [
    "/usr/bin/qemu-system-x86_64",
    "/usr/bin/qemu-img",
    "/usr/sbin/mkfs.xfs",
    "/usr/sbin/dmsetup",
    "/usr/sbin/kexec",
    "/usr/bin/makedumpfile",
];

const HOST_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
for m in @MODULES@; do insmod /mods/$m.ko; done
for i in $(seq 50); do
  for b in /sys/block/vd*; do
    [ "$(cat $b/serial 2>/dev/null)" = root ] && mount -t ext4 -o ro /dev/${b##*/} /new && break 2
  done
  sleep 0.1
done
umount /dev /proc /sys
exec switch_root /new /sbin/init
"#;

/// Options of makedumpfile come on the kernel's command line, one word:
/// `labdump=NAME:ARG,ARG;NAME:…`. A name in `-F` mode is written from stdout;
/// `cp` instead of options is the plain copy of `/proc/vmcore`. A script
/// `capture.sh` on the dump disk runs first, with the libraries beside it.
const CAPTURE_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
echo LAB CAPTURE UP
for m in @MODULES@; do insmod /mods/$m.ko; done
for i in $(seq 50); do
  for b in /sys/block/vd*; do
    [ "$(cat $b/serial 2>/dev/null)" = dump ] && mount -t ext4 /dev/${b##*/} /dump && break 2
  done
  sleep 0.1
done
[ -e /dump/capture.sh ] && LD_LIBRARY_PATH=/dump/lib sh /dump/capture.sh
for w in $(cat /proc/cmdline); do case "$w" in labdump=*) list=${w#labdump=};; esac; done
IFS=';'
for d in $list; do
  name=${d%%:*}; args=$(echo "${d#*:}" | tr , ' ')
  IFS=' '
  case " $args " in
    " cp ") cp /proc/vmcore /dump/$name; code=$?;;
    *" -F "*) makedumpfile --message-level 6 $args /proc/vmcore > /dump/$name; code=$?;;
    *) makedumpfile --message-level 6 $args /proc/vmcore /dump/$name; code=$?;;
  esac
  echo LAB DUMP $name $code
  IFS=';'
done
IFS=' '
umount /dump && echo LAB CAPTURE DONE
poweroff -f
"#;

/// A built set of images, in a directory named by the key of all that went in.
#[derive(Clone, Debug)]
pub struct Images {
    /// Hex digest of the inputs.
    pub key: String,
    /// The host's kernel.
    pub kernel: PathBuf,
    /// The host's initramfs: finds the root disk by its serial number.
    pub initrd: PathBuf,
    /// The host's root, ext4, never written to.
    pub root: PathBuf,
}

/// One thing in the host's root.
enum Item {
    Copy(PathBuf),
    Link(String),
    Text(&'static str),
    Bytes(Vec<u8>),
}

impl Images {
    /// The images at `dir/KEY`, which must have been built before.
    #[must_use]
    pub fn at(dir: &Path, key: &str) -> Self {
        let home = dir.join("images").join(key);
        Self {
            key: key.to_owned(),
            kernel: home.join("vmlinuz"),
            initrd: home.join("host.initrd"),
            root: home.join("root.img"),
        }
    }

    /// Builds what is not there yet. Of what both have, the host has the file of `installed`,
    /// on which it stands.
    pub fn build(
        dir: &Path,
        debian: &Debian,
        programs: &Programs,
        installed: Option<&Installed>,
    ) -> Result<Self> {
        let kernel = debian.kernel()?;
        let items = host_root(debian, [&kernel, &debian.older_kernel()?], programs)?;
        let host_initrd = initramfs(debian, &kernel, HOST_INIT, None)?;
        let mut key = digest(&items, &host_initrd)?;
        if let Some(installed) = installed {
            let mut both = DefaultHasher::new();
            (&key, &installed.key).hash(&mut both);
            key = format!("{:016x}", both.finish());
        }
        let images = Self::at(dir, &key);
        if images.root.exists() {
            return Ok(images);
        }
        eprintln!(
            "lab: building host images {key} (kernel {})",
            kernel.release
        );
        let home = dir.join("images").join(&key);
        let work = home.with_extension(format!("work{}", std::process::id()));
        let stage = work.join("stage");
        std::fs::create_dir_all(&stage)?;
        let mut mib = 512;
        if let Some(installed) = installed {
            installed.copy_to(&stage)?;
            mib += installed.mib()? * 5 / 4;
        }
        for (path, item) in &items {
            place(&stage, path, item).with_context(|| path.clone())?;
        }
        for dir in [
            "dev", "proc", "sys", "run", "tmp", "data", "dump", "tools", "root", "var/lib", "mnt",
        ] {
            std::fs::create_dir_all(stage.join(dir))?;
        }
        make_ext4(&work.join("root.img"), Some(&stage), mib)?;
        std::fs::remove_dir_all(&stage)?;
        std::fs::write(work.join("host.initrd"), host_initrd)?;
        std::fs::copy(&kernel.image, work.join("vmlinuz"))?;
        match std::fs::rename(&work, &home) {
            Ok(()) => {}
            // Another run of the lab was faster.
            Err(_) if images.root.exists() => std::fs::remove_dir_all(&work)?,
            Err(error) => return Err(error.into()),
        }
        Ok(images)
    }
}

/// Everything in the host's root: (path, what).
/// `guests` is the kernel that guests have, and the capture environment.
fn host_root(
    debian: &Debian,
    [kernel, guests]: [&Kernel; 2],
    programs: &Programs,
) -> Result<Vec<(String, Item)>> {
    let mut items: Vec<(String, Item)> = Vec::new();
    // The merged /usr of Debian 12.
    for dir in ["bin", "sbin", "lib", "lib64"] {
        items.push((format!("/{dir}"), Item::Link(format!("usr/{dir}"))));
    }
    let busybox = debian.file("/bin/busybox")?;
    let applets = run(Command::new(&busybox).arg("--list"))?;
    items.push(("/usr/bin/busybox".into(), Item::Copy(busybox)));
    for applet in applets.split_whitespace() {
        items.push((
            format!("/usr/bin/{applet}"),
            Item::Link("/usr/bin/busybox".into()),
        ));
    }
    let mut dynamic = vec![
        ("/usr/sbin/lab-agent".to_owned(), programs.agent.clone()),
        ("/usr/bin/lab-process".to_owned(), programs.process.clone()),
        ("/usr/bin/stand-in".to_owned(), programs.stand_in.clone()),
        ("/usr/bin/lab-net".to_owned(), programs.net.clone()),
    ];
    for path in HOST_PROGRAMS {
        dynamic.push((path.to_owned(), debian.file(path)?));
    }
    for (path, file) in dynamic {
        for (library, from) in debian.libraries(&file)? {
            items.push((library, Item::Copy(from)));
        }
        items.push((path, Item::Copy(file)));
    }
    items.push((
        "/usr/sbin/init".into(),
        Item::Link("/usr/sbin/lab-agent".into()),
    ));
    items.push((
        "/usr/bin/qmp".into(),
        Item::Link("/usr/sbin/lab-agent".into()),
    ));
    for path in FIRMWARE {
        items.push((path.to_owned(), Item::Copy(debian.file(path)?)));
    }
    items.extend(newer_qemu(debian)?);
    for module in HOST_MODULES {
        let Some(file) = kernel.module(module)? else {
            continue;
        };
        items.push((
            format!("/lib/modules/lab/{}", base(&file)),
            Item::Copy(file),
        ));
    }
    items.push(("/boot/vmlinuz".into(), Item::Copy(guests.image.clone())));
    items.push((
        "/boot/capture.initrd".into(),
        Item::Bytes(initramfs(
            debian,
            guests,
            CAPTURE_INIT,
            Some("/usr/bin/makedumpfile"),
        )?),
    ));
    items.push((
        "/boot/guest.initrd".into(),
        Item::Bytes(guest_initramfs(guests, programs)?),
    ));
    items.push((
        "/etc/os-release".into(),
        Item::Text(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n",
        ),
    ));
    items.push((
        "/etc/passwd".into(),
        Item::Text("root:x:0:0:root:/root:/bin/sh\n"),
    ));
    items.push(("/etc/group".into(), Item::Text("root:x:0:\n")));
    // The first of a name wins: applets do not shadow Debian's programs.
    items.sort_by_key(|(path, item)| (merged(path), matches!(item, Item::Link(_))));
    items.dedup_by_key(|(path, _)| merged(path));
    // Links of directories before what lies in them.
    items.sort_by_key(|(path, _)| path.matches('/').count());
    Ok(items)
}

/// Debian 13's QEMU with its libraries and its dynamic linker, beside Debian
/// 12's: see [`crate::guest::NEWER_QEMU`].
fn newer_qemu(debian: &Debian) -> Result<Vec<(String, Item)>> {
    let files = Foreign::qemu(debian.lab())?.files()?;
    Ok(files
        .into_iter()
        .map(|file| (format!("/opt/newer/{}", base(&file)), Item::Copy(file)))
        .collect())
}

fn base(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// `path` as it is after Debian's merge of / and /usr.
fn merged(path: &str) -> String {
    for dir in ["/bin/", "/sbin/", "/lib/", "/lib64/"] {
        if path.starts_with(dir) {
            return format!("/usr{path}");
        }
    }
    path.to_owned()
}

fn place(stage: &Path, path: &str, item: &Item) -> Result<()> {
    let to = stage.join(merged(path).trim_start_matches('/'));
    // An installed system's own file, or the link that merges its /usr.
    if to.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match item {
        Item::Copy(from) => {
            std::fs::copy(from, &to).with_context(|| from.display().to_string())?;
            date(&to)?;
        }
        Item::Link(target) => symlink(target, &to)?,
        Item::Text(text) => std::fs::write(&to, text)?,
        Item::Bytes(bytes) => {
            std::fs::write(&to, bytes)?;
            date(&to)?;
        }
    }
    Ok(())
}

/// All files are of one day, as a package's are of the day on which it was built: the same file has
/// the same time in two images.
fn date(path: &Path) -> Result<()> {
    let day = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let file = File::options().append(true).open(path);
    file.and_then(|file| file.set_modified(day))
        .with_context(|| path.display().to_string())
}

/// An initramfs with busybox, the virtio modules, `init`, and one more program
/// with its libraries.
fn initramfs(
    debian: &Debian,
    kernel: &Kernel,
    init: &str,
    program: Option<&str>,
) -> Result<Vec<u8>> {
    let mut cpio = Cpio::new();
    // What is a module of the kernel for any machine is built into the others, or not there.
    let ext4 = EXT4.map(|module| kernel.module(module).ok().flatten());
    let virtio = VIRTIO.map(|module| kernel.module(module));
    let virtio = virtio.into_iter().collect::<Result<Vec<_>>>()?;
    let mut names = Vec::new();
    for file in virtio.into_iter().chain(ext4).flatten() {
        let name = base(&file);
        cpio.file(&format!("mods/{name}"), &file)?;
        names.push(name.trim_end_matches(".ko").to_owned());
    }
    let init = init.replace("@MODULES@", &names.join(" "));
    cpio.bytes("init", init.as_bytes(), true);
    cpio.file("bin/busybox", &debian.file("/bin/busybox")?)?;
    if let Some(program) = program {
        let file = debian.file(program)?;
        for (path, from) in debian.libraries(&file)? {
            cpio.file(&path, &from)?;
        }
        cpio.file(&format!("bin/{}", base(&file)), &file)?;
    }
    Ok(cpio.finish())
}

fn guest_initramfs(kernel: &Kernel, programs: &Programs) -> Result<Vec<u8>> {
    let mut cpio = Cpio::new();
    cpio.file("init", &programs.guest_init)?;
    for module in VIRTIO.iter().chain(&GUEST_MODULES) {
        let Some(file) = kernel.module(module)? else {
            continue;
        };
        cpio.file(&format!("mods/{}", base(&file)), &file)?;
    }
    Ok(cpio.finish())
}

const LAYOUT: u32 = 5;

/// One hash over all inputs. Our own programs and texts count by content,
/// Debian's files by path, size and time of change.
fn digest(items: &[(String, Item)], initrd: &[u8]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    // Raised when images of the same inputs are built differently.
    LAYOUT.hash(&mut hasher);
    initrd.hash(&mut hasher);
    for (path, item) in items {
        path.hash(&mut hasher);
        match item {
            Item::Copy(from) => {
                let meta = std::fs::metadata(from).with_context(|| from.display().to_string())?;
                if path.contains("lab-") || path.contains("stand-in") {
                    std::fs::read(from)?.hash(&mut hasher);
                } else {
                    let changed = meta.modified()?.duration_since(UNIX_EPOCH)?;
                    (meta.len(), changed.as_secs()).hash(&mut hasher);
                }
                meta.permissions().mode().hash(&mut hasher);
            }
            Item::Link(target) => target.hash(&mut hasher),
            Item::Text(text) => text.hash(&mut hasher),
            Item::Bytes(bytes) => bytes.hash(&mut hasher),
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// A sparse ext4 image of `mib` MiB, filled from a directory.
pub fn make_ext4(image: &Path, from: Option<&Path>, mib: u64) -> Result<()> {
    File::create(image)
        .and_then(|file| file.set_len(mib << 20))
        .with_context(|| image.display().to_string())?;
    let mut command = Command::new(system_tool("mke2fs"));
    command.args(["-q", "-F", "-t", "ext4"]);
    // Nothing is zeroed later in the background, and no blocks are kept back:
    // these disks are short-lived.
    command.args([
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
    ]);
    // What a disk of ordinary size would have, not the 1 KiB of tiny ones.
    command.args(["-m", "0", "-b", "4096", "-I", "256"]);
    if let Some(from) = from {
        command.arg("-d").arg(from);
    }
    run(command.arg(image)).map(drop)
}

/// Copies files out of an unmounted ext4 image: (path inside, file to write).
/// Files that are not there are left out.
pub fn read_ext4(image: &Path, files: &[(String, PathBuf)]) -> Result<()> {
    for (inside, to) in files {
        run(Command::new(system_tool("debugfs"))
            .arg("-R")
            .arg(format!("dump {inside} {}", to.display()))
            .arg(image))?;
    }
    Ok(())
}

/// Tools in /sbin are not on an ordinary user's PATH in Debian.
fn system_tool(name: &str) -> PathBuf {
    for dir in ["/usr/sbin", "/sbin"] {
        let path = Path::new(dir).join(name);
        if path.exists() {
            return path;
        }
    }
    name.into()
}

//! `vmrestore prepare`: makes this healthy host ready for its guests to go on in place when it panics
//! (docs/in-place.md).

mod advice;
mod cpio;
mod file_systems;
mod guests;
pub(super) mod hook;
pub(super) mod initramfs;
mod links;
mod modules;
pub(super) mod plan;
mod programs;

pub(super) use file_systems::identity;
pub(super) use modules::Tree;

use super::args::PrepareArgs;
use super::exit::{Exit, Failure};
use super::output::print_json;
use super::table::{bytes, utc};
use file_systems::FileSystems;
use guests::Guests;
use plan::{Plan, PlannedFile};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file that is only read is packed up to this size; a greater one's file system is mounted. Bytes.
const MOST_PACKED: u64 = 128 << 20;

/// The JSON document.
#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    plan: &'a Plan,
    written: Option<&'a Path>,
    /// What is not there, or cannot be.
    lacking: &'a [String],
    /// What is left for the administrator.
    advice: &'a [advice::Advice],
    exit_code: u8,
}

/// Makes the plan, and what else is asked for.
///
/// # Errors
/// This host cannot be read, or a file cannot be written.
pub fn run(args: &PrepareArgs, json: bool) -> Result<Exit, Failure> {
    if args.uninstall {
        hook::uninstall(&args.root)?;
        return Ok(Exit::Done);
    }
    refuse_lockdown()?;
    let earlier = Plan::load(&args.plan).map_err(|e| {
        Failure::new(
            Exit::Refused,
            e,
            "put it aside: it may hold the order of guests that somebody chose",
        )
    })?;
    let found = guests::read()?;
    let mut lacking = found.unread.clone();
    let mut plan = make(args, &found, &mut lacking)?;
    if let Some(earlier) = &earlier {
        plan.keep_choices_of(earlier);
    }
    if let Some(minutes) = args.reboot_after {
        plan.reboot_after_minutes = (minutes > 0).then_some(minutes);
    }
    if let Some(directory) = &args.dump_directory {
        plan.save.directory = Some(directory.clone());
    }
    if let Some(unknown) = plan.put_first(&args.first).first() {
        return Err(Failure::new(
            Exit::NoMatch,
            format!("no guest is called {unknown:?}"),
            "`vmrestore list /proc/kcore` shows those that run",
        ));
    }
    for guest in &plan.guests {
        let of = |why: &String| format!("{}: {why}", guest.name);
        lacking.extend(guest.cannot.iter().map(of));
    }
    let mut written = None;
    if !args.dry_run {
        if let Some(to) = &args.initramfs {
            let extra = initramfs::Extra {
                programs: args.run.iter().filter_map(|c| program_of(c)).collect(),
                files: args.add.clone(),
            };
            lacking.extend(initramfs::write(&mut plan, to, &extra)?);
        } else {
            plan.initramfs = earlier.and_then(|e| e.initramfs);
        }
        plan.store(&args.plan)
            .map_err(|e| Failure::new(Exit::Failed, e, "name another place with --plan"))?;
        written = Some(args.plan.as_path());
        if args.install {
            hook::install(&args.root)?;
        }
    }
    let advice = advice::of(&plan, &found.sizes);
    let exit = match lacking.is_empty() {
        true => Exit::Done,
        false => Exit::WithLosses,
    };
    if json {
        print_json(&Document {
            schema_version: super::SCHEMA_VERSION,
            plan: &plan,
            written,
            lacking: &lacking,
            advice: &advice,
            exit_code: exit as u8,
        })?;
    } else {
        print(&plan, &lacking, written);
        advice::print(&advice);
    }
    Ok(exit)
}

/// The plan for these guests on this host, without anybody's choices.
fn make(args: &PrepareArgs, found: &Guests, lacking: &mut Vec<String>) -> Result<Plan, Failure> {
    let io = |e: std::io::Error| Failure::new(Exit::HostCannot, e, "run as root, with procfs");
    let uname = nix::sys::utsname::uname().map_err(|e| io(e.into()))?;
    let release = uname.release().to_string_lossy().into_owned();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let made = utc(now.map_or(0, |n| i64::try_from(n.as_secs()).unwrap_or(i64::MAX)));
    let kernel = args.kernel.clone().unwrap_or(release);
    let name = uname.nodename().to_string_lossy().into_owned();
    let mut plan = Plan::new(name, kernel, made);
    plan.guests.clone_from(&found.planned);
    plan.state_dir.clone_from(&args.state_dir);
    plan.run.clone_from(&args.run);
    plan.sysctl = guests::sysctl();
    let needs = &found.needs;

    let mut wanted = needs.modules.clone();
    wanted.extend(
        ["kvm_amd", "kvm_intel"]
            .map(String::from)
            .into_iter()
            .filter(|m| modules::is_loaded(m)),
    );
    wanted.extend(args.module.iter().cloned());

    let links = links::find(&needs.bridges, &needs.taps);
    wanted.extend(links.modules);
    lacking.extend(links.lacking);
    plan.links = links.links;

    let mut disks = FileSystems::here().map_err(io)?;
    for file in &needs.written {
        if let Some(directory) = file.parent()
            && let Err(why) = disks.want(directory)
        {
            lacking.push(format!(
                "without a root file system: {}: {why}",
                file.display()
            ));
        }
    }
    for directory in [Some(&args.state_dir), args.dump_directory.as_ref()]
        .into_iter()
        .flatten()
    {
        let there = existing(directory);
        if let Err(why) = disks.want(&there) {
            lacking.push(format!(
                "without a root file system: {}: {why}",
                directory.display()
            ));
        }
    }
    let mut files = Vec::new();
    for file in &needs.read {
        match planned(file, &mut disks) {
            Ok(file) => files.push(file),
            Err(why) => lacking.push(format!("{}: {why}", file.display())),
        }
    }
    plan.files = files;
    for device in &needs.block_devices {
        use std::os::unix::fs::MetadataExt;
        if let Ok(meta) = std::fs::metadata(device) {
            wanted.extend(modules::drivers(&file_systems::sysfs(meta.rdev())));
        }
    }
    plan.directories = needs
        .directories
        .iter()
        .filter(|d| !disks.brings(d))
        .cloned()
        .collect();
    wanted.extend(disks.modules);
    plan.mounts = disks.mounts;

    let directory = args
        .modules
        .clone()
        .unwrap_or_else(|| Path::new("/lib/modules").join(&plan.kernel));
    let mut tree = Tree::of(&directory);
    if tree.is_empty() {
        lacking.push(format!(
            "{}: no kernel modules are there",
            directory.display()
        ));
    }
    let (order, missing) = tree
        .in_order(wanted.iter().map(String::as_str))
        .map_err(io)?;
    // What is not loaded as a module here is built in, and will be there.
    for name in missing.into_iter().filter(|name| modules::is_loaded(name)) {
        lacking.push(format!(
            "{}: no module {name}, which is loaded here",
            directory.display()
        ));
    }
    plan.modules = order;
    Ok(plan)
}

/// A file that guests read. A great one comes with its file system.
fn planned(path: &Path, disks: &mut FileSystems) -> Result<PlannedFile, String> {
    let facts = initramfs::facts(path).map_err(|e| e.to_string())?;
    if facts.size > MOST_PACKED && !disks.brings(path) {
        disks.want(path.parent().unwrap_or(path))?;
    }
    Ok(facts)
}

/// The nearest directory above that is there.
fn existing(directory: &Path) -> PathBuf {
    let mut above = directory.ancestors();
    above.find(|d| d.exists()).unwrap_or(directory).to_owned()
}

/// The program of a command line.
fn program_of(command: &str) -> Option<PathBuf> {
    let word = command.split_whitespace().next()?;
    word.starts_with('/').then(|| PathBuf::from(word))
}

/// `/dev/mem` is closed where the kernel is locked down.
fn refuse_lockdown() -> Result<(), Failure> {
    let text = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let level = text
        .split_whitespace()
        .find_map(|w| w.strip_prefix('[')?.strip_suffix(']'));
    match level {
        None | Some("none") => Ok(()),
        Some(level) => Err(Failure::new(
            Exit::HostCannot,
            format!(
                "the kernel is locked down ({level}): /dev/mem is closed, by which guests go on in place"
            ),
            "Secure Boot locks it; without, or by a dump and a reboot, guests come back (docs/kdump.md)",
        )),
    }
}

fn print(plan: &Plan, lacking: &[String], written: Option<&Path>) {
    let known: BTreeSet<&str> = plan
        .guests
        .iter()
        .filter(|g| g.vcpus > 0)
        .map(|g| g.name.as_str())
        .collect();
    println!("GUESTS, in the order in which they go on");
    for (number, guest) in plan.guests.iter().enumerate() {
        let what = match known.contains(guest.name.as_str()) {
            true => format!(
                "{} vCPUs, {} copied",
                guest.vcpus,
                bytes(guest.copied_bytes)
            ),
            false => "does not run now".into(),
        };
        println!("      {}. {}: {what}", number + 1, guest.name);
    }
    println!("IN THE CAPTURE KERNEL ({})", plan.kernel);
    let names = |list: Vec<&str>| match list.is_empty() {
        true => "none".to_owned(),
        false => list.join(" "),
    };
    let modules = plan.modules.iter().map(|m| m.name.as_str()).collect();
    println!("      modules   {}", names(modules));
    for mount in &plan.mounts {
        for (_, at) in &mount.binds {
            println!(
                "      mount     {} ({} {})",
                at.display(),
                mount.kind,
                mount.uuid
            );
        }
    }
    let links = plan.links.iter().map(|l| l.name.as_str()).collect();
    println!("      links     {}", names(links));
    println!("      files     {}", plan.files.len());
    if let Some(image) = &plan.initramfs {
        println!(
            "      initramfs {} ({}, {} unpacked)",
            image.path.display(),
            bytes(image.size),
            bytes(image.unpacked)
        );
    }
    for what in lacking {
        println!("LACKS {what}");
    }
    match written {
        Some(path) => println!("written to {}", path.display()),
        None => println!("nothing was written (--dry-run)"),
    }
}

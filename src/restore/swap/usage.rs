//! What this boot has done to a swap area.
//!
//! `/proc/swaps` says what is on now, the kernel's log what was ever turned on, `/proc/vmstat` how
//! many pages were swapped out in all; a device counts what was written to it. Turning an area on writes
//! nothing to it, unless it is discarded on the occasion; from the first page that is swapped out on, any
//! slot may be another's.

use super::Refusal;
use super::place::Place;
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// Longest record of the log: CONSOLE_EXT_LOG_MAX, and more.
const MAX_RECORD: usize = 16 << 10;
/// Records that are read: the largest log has 2 ^ 25 bytes.
const MAX_RECORDS: usize = 1 << 20;

/// Why it is as good as at the crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// It was not turned on since this host booted.
    NeverOn,
    /// It was or is on, and nothing was swapped out to anything.
    NothingSwapped,
    /// Its device has taken no write.
    NothingWritten,
}

/// What this boot says of its swapping.
#[derive(Clone, Debug, Default)]
pub(super) struct Boot {
    /// The lines of `/proc/swaps`.
    on_now: Vec<Target>,
    /// Areas turned on, by the kernel's log, and whether they were discarded.
    turned_on: Vec<(Target, bool)>,
    /// The log goes back to this boot's begin.
    log_is_whole: bool,
    /// `pswpout`: pages swapped out.
    swapped_out: Option<u64>,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Device(u32, u32),
    /// Device and number of an inode.
    File(u64, u64),
    /// It cannot be said.
    Unknown,
}

impl Target {
    fn of(path: &str) -> Self {
        let Ok(meta) = fs::metadata(path) else {
            return Self::Unknown;
        };
        if meta.file_type().is_block_device() {
            return Self::Device(libc::major(meta.rdev()), libc::minor(meta.rdev()));
        }
        Self::File(meta.dev(), meta.ino())
    }

    /// It is, or may be, that place.
    fn may_be(&self, place: &Place) -> bool {
        match (self, &place.file) {
            (Self::Unknown, _) => true,
            (Self::Device(major, minor), None) => (*major, *minor) == place.number,
            (Self::File(device, inode), Some((_, on, number))) => device == on && inode == number,
            // The device that a swap file's file system is on cannot be swapped to.
            _ => false,
        }
    }
}

impl Boot {
    /// As it is now. What cannot be read is not known, and speaks for nothing.
    pub fn look() -> Self {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
        let (records, log_is_whole) = log();
        Self {
            on_now: on_now(&swaps),
            turned_on: records.iter().filter_map(|r| turned_on(r)).collect(),
            log_is_whole,
            swapped_out: swapped_out(&vmstat),
        }
    }

    /// Why the area is as it was at the crash, so far as this boot is concerned. `written`: see [`written`].
    pub fn usage(&self, place: &Place, written: Option<u64>) -> Result<Usage, Refusal> {
        const TURN_OFF: &str = "turn it off (swapoff) before anything is swapped out to it; a host \
                                that is to restore swapped pages turns its swap on afterwards";
        let on_now = self.on_now.iter().any(|target| target.may_be(place));
        let turned_on = self.turned_on.iter().filter(|(t, _)| t.may_be(place));
        let discarded = turned_on.clone().any(|(_, discarded)| *discarded);
        let was_on = on_now || turned_on.count() > 0;
        if !was_on && self.log_is_whole {
            return Ok(Usage::NeverOn);
        }
        if written == Some(0) {
            return Ok(Usage::NothingWritten);
        }
        if discarded {
            return Err(Refusal::doubt(
                "this boot has discarded its content when it was turned on (swapon with \"discard\")",
                "restore before swap is turned on",
            ));
        }
        match self.swapped_out {
            Some(0) if self.log_is_whole => Ok(Usage::NothingSwapped),
            Some(0) => Err(Refusal::doubt(
                "the kernel's log has lost its begin, so it cannot be said whether this boot has \
                 discarded its content when it was turned on",
                "restore earlier after a boot; --force if swap is not discarded here",
            )),
            pages => {
                let pages = pages.map_or("an unknown number of".into(), |n| n.to_string());
                let how = match (on_now, was_on) {
                    (true, _) => "it is on",
                    (false, true) => "it was on",
                    (false, false) => "the kernel's log has lost its begin: it may have been on",
                };
                Err(Refusal::doubt(
                    format!(
                        "{how} since this host booted, and {pages} pages were swapped out: \
                         it was used again"
                    ),
                    TURN_OFF,
                ))
            }
        }
    }
}

/// Sectors of the area's device that were written or discarded since this host booted, if it has one of its own,
/// and they are counted.
pub(super) fn written(place: &Place) -> Option<u64> {
    if place.file.is_some() {
        return None;
    }
    let (major, minor) = place.number;
    changed(&fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?)
}

/// Linux Documentation/block/stat.rst: the seventh number, and the fourteenth (since v4.19).
fn changed(stat: &str) -> Option<u64> {
    let numbers: Vec<u64> = stat
        .split_ascii_whitespace()
        .map_while(|n| n.parse().ok())
        .collect();
    numbers.get(6)?.checked_add(*numbers.get(13)?)
}

/// The areas in `/proc/swaps`.
fn on_now(swaps: &str) -> Vec<Target> {
    swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_ascii_whitespace().next())
        .map(|path| Target::of(&unescaped(path)))
        .collect()
}

/// `seq_file_path` writes blanks and backslashes as octal numbers.
fn unescaped(path: &str) -> String {
    let mut out = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        let number = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match number {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn swapped_out(vmstat: &str) -> Option<u64> {
    vmstat
        .lines()
        .find_map(|line| line.strip_prefix("pswpout "))
        .and_then(|n| n.trim().parse().ok())
}

/// "Adding 1048572k swap on /dev/vdb.  Priority:-2 extents:1 across:1048572k SSDsc". Linux
/// mm/swapfile.c: `s` says that the area was discarded, `c` that what is freed will be.
fn turned_on(message: &str) -> Option<(Target, bool)> {
    let (size, rest) = message.strip_prefix("Adding ")?.split_once("k swap on ")?;
    size.parse::<u64>().ok()?;
    let (path, rest) = rest.split_once(".  Priority:")?;
    let flags = rest.rsplit_once("across:")?.1;
    let flags = flags.split_once(' ').map_or("", |(_, flags)| flags);
    let discarded = flags.contains('D') && flags.contains(['s', 'c']);
    // A name relative to where somebody was then.
    let target = match path.starts_with('/') {
        true => Target::of(&PathBuf::from(path).to_string_lossy()),
        false => Target::Unknown,
    };
    Some((target, discarded))
}

/// The messages of the kernel's log, and whether the first that there was is among them.
fn log() -> (Vec<String>, bool) {
    let mut messages = Vec::new();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg");
    let Ok(mut file) = opened else {
        return (messages, false);
    };
    let mut is_whole = None;
    let mut buffer = vec![0; MAX_RECORD];
    for _ in 0..MAX_RECORDS {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                let record = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default());
                let Some((number, message)) = parse_record(&record) else {
                    continue;
                };
                is_whole.get_or_insert(number == 0);
                messages.push(message.to_owned());
            }
            // A record that was overwritten while we read: some are lost.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => is_whole = Some(false),
            Err(_) => break,
        }
    }
    (messages, is_whole.unwrap_or(false))
}

/// The number of a record and its first line: "6,339,5140900,-;Adding …".
fn parse_record(record: &str) -> Option<(u64, &str)> {
    let (head, text) = record.split_once(';')?;
    let number = head.split(',').nth(1)?.parse().ok()?;
    Some((number, text.lines().next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            node: "/dev/vdb".into(),
            number: (254, 16),
            file: None,
        }
    }

    fn here() -> Target {
        Target::Device(254, 16)
    }

    fn said(boot: &Boot) -> String {
        match boot.usage(&place(), Some(8)) {
            Ok(usage) => format!("{usage:?}"),
            Err(refusal) => refusal.why,
        }
    }

    #[test]
    fn an_area_that_this_boot_did_not_touch_is_used() {
        let mut boot = Boot {
            log_is_whole: true,
            swapped_out: Some(77),
            ..Boot::default()
        };
        // Others are swapped to.
        boot.on_now = vec![Target::Device(254, 32), Target::File(1, 2)];
        assert_eq!(said(&boot), "NeverOn");
        // The log has lost its begin.
        boot.log_is_whole = false;
        assert!(said(&boot).contains("may have been on"));
        boot.log_is_whole = true;
        // It was on, and is off again.
        boot.turned_on = vec![(here(), false)];
        assert!(said(&boot).contains("it was on"));
        boot.swapped_out = Some(0);
        assert_eq!(said(&boot), "NothingSwapped");
        boot.log_is_whole = false;
        assert!(said(&boot).contains("lost its begin"));
        boot.log_is_whole = true;
        boot.turned_on = vec![(here(), true)];
        assert!(said(&boot).contains("discarded"));
        boot.turned_on.clear();
        boot.on_now.push(here());
        assert_eq!(said(&boot), "NothingSwapped");
        boot.swapped_out = Some(1);
        assert!(said(&boot).contains("it is on") && said(&boot).contains(" 1 pages"));
        boot.swapped_out = None;
        assert!(said(&boot).contains("unknown number"));
        // Others were swapped to.
        assert!(matches!(
            boot.usage(&place(), Some(0)),
            Ok(Usage::NothingWritten)
        ));
        // Nobody knows what it was that was turned on.
        boot.on_now = vec![Target::Unknown];
        assert!(said(&boot).contains("it is on"));
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let line = "Adding 65532k swap on /dev/null/none.  Priority:-2 extents:1 across:65532k ";
        assert_eq!(turned_on(line), Some((Target::Unknown, false)));
        let line = "Adding 65532k swap on swapfile.  Priority:5 extents:3 across:70000k SSDsc";
        assert_eq!(turned_on(line), Some((Target::Unknown, true)));
        let line = "Adding 65532k swap on swapfile.  Priority:5 extents:3 across:70000k SSD";
        assert_eq!(turned_on(line), Some((Target::Unknown, false)));
        assert_eq!(turned_on("Adding 9k of something"), None);
        let stat = "  1 2 3 4  5 6 70 8  9 10 11  12 13 400 15 16 17\n";
        assert_eq!(changed(stat), Some(470));
        assert_eq!(changed("1 2 3 4 5 6 7 8 9 10 11"), None);
        let record = "6,339,5140900,-;Adding it\n SUBSYSTEM=x\n";
        assert_eq!(parse_record(record), Some((339, "Adding it")));
        assert_eq!(parse_record("no record"), None);
        assert_eq!(swapped_out("pswpin 3\npswpout 42\n"), Some(42));
        assert_eq!(unescaped(r"/a\040b\134"), "/a b\\");
        assert_eq!(unescaped(r"/a\9"), r"/a\9");
    }

    #[test]
    fn a_path_is_what_it_leads_to() {
        let this = std::env::current_exe().expect("this program");
        let target = Target::of(&this.to_string_lossy());
        let meta = fs::metadata(&this).expect("is there");
        assert_eq!(target, Target::File(meta.dev(), meta.ino()));
        assert_eq!(Target::of("/none"), Target::Unknown);
    }
}

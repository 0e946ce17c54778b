//! System V IPC of the living machine: what a process had to do with, as procfs
//! and the calls themselves say. What is undone at its end they do not say.

use super::{Memory, PAGE};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use vmrestore::dataset::*;
use vmrestore::sys::sysv::{self, Kind};

/// Lines of /proc/sysvipc: numbers, but for the rights, which are octal.
fn lines(name: &str) -> Vec<Vec<i64>> {
    let text = fs::read_to_string(format!("/proc/sysvipc/{name}")).expect("sysvipc");
    text.lines()
        .skip(1)
        .map(|line| {
            let words = line.split_ascii_whitespace().enumerate();
            words
                .map(|(at, word)| match at {
                    2 => i64::from_str_radix(word, 8).expect("octal"),
                    _ => word.parse().expect("a number"),
                })
                .collect()
        })
        .collect()
}

fn object(line: &[i64], owner: usize, kind: SysvKind) -> SysvObject {
    let id = |at: usize| line[at] as u32;
    SysvObject {
        id: line[1] as i32,
        key: line[0] as i32,
        mode: id(2) & 0o777,
        uid: id(owner),
        gid: id(owner + 1),
        creator_uid: id(owner + 2),
        creator_gid: id(owner + 3),
        unused: false,
        kind,
    }
}

/// Does something in the IPC namespace of a process.
pub fn within<T>(pid: i32, what: impl FnOnce() -> T) -> T {
    let open = |who: &str| fs::File::open(format!("/proc/{who}/ns/ipc")).expect("a namespace");
    let (theirs, own) = (open(&pid.to_string()), open("thread-self"));
    let enter = |space: &fs::File| {
        nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWIPC).expect("setns");
    };
    // Not where it is the same: that needs no right.
    let link = |who: &str| fs::read_link(format!("/proc/{who}/ns/ipc")).expect("a namespace");
    if link(&pid.to_string()) == link("thread-self") {
        return what();
    }
    enter(&theirs);
    let result = what();
    enter(&own);
    result
}

/// IDs in calls that threads of a process are in: semop, msgsnd, msgrcv, semtimedop.
fn in_calls(pid: i32) -> Vec<(bool, i32)> {
    let of_thread = |tid: i32| -> Option<(bool, i32)> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
        let mut words = text.split_ascii_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        let first = words.next()?.strip_prefix("0x")?;
        let id = u64::from_str_radix(first, 16).ok()? as i32;
        [65, 69, 70, 220]
            .contains(&number)
            .then_some((number == 65 || number == 220, id))
    };
    let tids = super::numbers(&format!("/proc/{pid}/task"));
    tids.into_iter().filter_map(of_thread).collect()
}

/// What a process has mapped, used last, or waits in; and the segments' content.
pub fn objects(
    pid: i32,
    mem: &fs::File,
    memory: &mut Memory,
    vmas: &[Vma],
) -> (Vec<SysvObject>, Vec<SharedMemory>) {
    let calls = in_calls(pid);
    let mut found = Vec::new();
    let mut shared = BTreeMap::new();
    for line in lines("shm") {
        let identity = segment(line[1] as u64);
        let mut pages: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut mapped = false;
        for vma in vmas {
            if let MappingKind::Segment {
                memory: of, offset, ..
            } = vma.kind
                && of == identity
            {
                if !mapped {
                    // All of it; what is behind its end only memory shows.
                    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end);
                    let bytes = fs::read(path).expect("a segment's file");
                    for (number, page) in (0..).zip(bytes.chunks(PAGE as usize)) {
                        let mut page = page.to_vec();
                        page.resize(PAGE as usize, 0);
                        pages.insert(number * PAGE, page);
                    }
                }
                mapped = true;
                for at in (vma.start..vma.end).step_by(PAGE as usize) {
                    let mut page = vec![0; PAGE as usize];
                    mem.read_exact_at(&mut page, at).expect("memory");
                    pages.insert(offset + (at - vma.start), page);
                }
            }
        }
        if !mapped {
            continue;
        }
        let size = line[3] as u64;
        shared.insert(
            identity.0,
            SharedMemory {
                id: identity,
                name: format!("/SYSV{:08x}", line[0]),
                memfd: false,
                size,
                seals: 0,
                pages: pages
                    .iter()
                    .map(|(place, page)| memory.store(*place, page))
                    .collect(),
                huge_page: 0,
            },
        );
        let kind = SysvKind::Segment {
            memory: identity,
            size,
            creator: line[4] as i32,
            removed: line[2] & 0o1000 != 0,
            locked: line[2] & 0o2000 != 0,
            no_reserve: false,
        };
        found.push(object(&line, 7, kind));
    }
    for line in lines("sem") {
        let id = line[1] as i32;
        let values: Vec<Semaphore> = (0..line[3] as i32)
            .map(|number| Semaphore {
                // SAFETY: these commands take no argument.
                value: unsafe { libc::semctl(id, number, libc::GETVAL) },
                // SAFETY: as above.
                pid: unsafe { libc::semctl(id, number, libc::GETPID) },
            })
            .collect();
        if !calls.contains(&(true, id)) && values.iter().all(|one| one.pid != pid) {
            continue;
        }
        let kind = SysvKind::Semaphores {
            values,
            undo: Vec::new(),
            operated: line[8] != 0,
        };
        found.push(object(&line, 4, kind));
    }
    for line in lines("msg") {
        let id = line[1] as i32;
        let used = [line[5], line[6]].contains(&i64::from(pid));
        if !calls.contains(&(false, id)) && !used {
            continue;
        }
        let kind = SysvKind::Queue {
            max_bytes: max_bytes(id),
            messages: messages(id, line[4]),
            sender: line[5] as i32,
            receiver: line[6] as i32,
        };
        found.push(object(&line, 7, kind));
    }
    (found, shared.into_values().collect())
}

fn max_bytes(id: i32) -> u64 {
    // SAFETY: plain data; zeros are a value of it.
    let mut info: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such structure.
    let done = unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut info) };
    assert_eq!(done, 0);
    info.msg_qbytes
}

fn messages(id: i32, count: i64) -> Vec<SysvMessage> {
    const MSG_COPY: i32 = 0o40000;
    (0..count)
        .map(|number| {
            let mut bytes = vec![0u8; 8 + 8192];
            let flags = MSG_COPY | libc::IPC_NOWAIT;
            // SAFETY: the kernel writes a type and at most 8192 bytes behind it.
            let got = unsafe { libc::msgrcv(id, bytes.as_mut_ptr().cast(), 8192, number, flags) };
            let len = usize::try_from(got).expect("a message");
            let kind = i64::from_ne_bytes(bytes[..8].try_into().expect("8"));
            SysvMessage {
                kind,
                data: Blob(bytes[8..8 + len].to_vec()),
            }
        })
        .collect()
}

/// A segment's identity in a dataset.
pub fn segment(id: u64) -> ObjectId {
    ObjectId(1 << 41 | id)
}

/// As the crash of the host does.
pub fn remove(objects: &[SysvObject]) {
    each(objects, |kind, object| sysv::remove(kind, object.id, None));
}

/// Leaves objects as a restore does that is killed before its processes run: there, and nobody has a
/// right to them.
pub fn leave_remains(objects: &[SysvObject]) {
    each(objects, |kind, object| {
        sysv::set_mode(kind, object.id, 0, None)
    });
}

fn each(objects: &[SysvObject], act: impl Fn(Kind, &SysvObject) -> std::io::Result<()>) {
    for object in objects {
        let kind = match object.kind {
            SysvKind::Segment { .. } => Kind::Segment,
            SysvKind::Semaphores { .. } => Kind::Semaphores,
            SysvKind::Queue { .. } => Kind::Queue,
        };
        // A removed segment went with its process.
        let _ = act(kind, object);
    }
}

//! Interfaces behind tap and tun queues: configured as the dead host had them, when the process is
//! about to run and not before. An interface that is on this host already (libvirt or an
//! administrator made it) is used as it is found, but for what keeps it from working.
//!
//! Nothing here can make a restore fail: a guest whose network hangs in the air runs, and the
//! report says what is missing. Dropped before the process runs, all that was changed is undone;
//! interfaces made anew go with the process that made them.

pub(crate) mod messages;
mod setup;

use self::messages::{IFLA_MASTER, RTM_NEWLINK, attribute, link_message};
use self::setup::Setup;
use super::announce;
use super::stub::Family;
use crate::dataset::{Dataset, Fidelity, FileKind, ObjectId, TapLink};
use crate::sys::netlink::{self, Rtnetlink};
use crate::sys::pidfd;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a port may take until its bridge forwards, before the guest is announced.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between the first announcement and the second.
const PAUSE: Duration = Duration::from_millis(50);

/// The first queue of an interface.
#[derive(Clone, Debug)]
pub struct Queue {
    /// PID, in the dead host, of the process that has it.
    pub pid: i32,
    /// Its open file.
    pub file: ObjectId,
    /// The interface's name in the dead host.
    pub interface: String,
    /// Its name here.
    pub name: String,
    /// It was here before.
    pub existed: bool,
    /// It is out of service: nothing can be sent through it.
    pub detached: bool,
}

/// All interfaces of one restore.
#[derive(Debug, Default)]
pub struct Taps {
    queues: Vec<Queue>,
    /// Open queues, in the order of `queues`, once the interfaces are configured.
    open: Vec<Option<File>>,
    /// What has been changed on interfaces that were here before, in order.
    undo: Vec<Undo>,
}

/// How to take a change back.
#[derive(Debug)]
enum Undo {
    Master(u32),
    Down(u32),
}

impl Drop for Taps {
    fn drop(&mut self) {
        if self.undo.is_empty() {
            return;
        }
        let Ok(mut netlink) = Rtnetlink::open() else {
            return;
        };
        for change in self.undo.drain(..).rev() {
            let (index, flags, attribute) = match change {
                Undo::Master(index) => (index, None, attribute(IFLA_MASTER, &[0; 4])),
                Undo::Down(index) => (index, Some(false), Vec::new()),
            };
            // The restore has failed already: that is what is reported.
            let _ = netlink.request(RTM_NEWLINK, 0, &link_message(0, index, flags, &attribute));
        }
    }
}

impl Taps {
    /// The name here of an interface that a queue was attached to already.
    pub fn name_of(&self, interface: &str) -> Option<&str> {
        let queue = self.queues.iter().find(|q| q.interface == interface)?;
        Some(&queue.name)
    }

    /// Remembers an interface by its first queue, and says what can be known by now.
    pub fn add(&mut self, queue: Queue, notes: &mut Vec<Fidelity>, kind: &FileKind) {
        let subject = format!("pid {}", queue.pid);
        let what = format!("network interface {}", queue.interface);
        match kind {
            FileKind::Tun {
                link: Some(link), ..
            } => {
                if let Some(master) = &link.master
                    && !class(&master.name).exists()
                {
                    notes.push(Fidelity::lost(
                        subject,
                        what,
                        format!(
                            "it was a port of {} ({}), which is not on this host: the guest's \
                             network is not connected; make it, then `ip link set {} master {}`",
                            master.name, master.kind, queue.name, master.name
                        ),
                    ));
                }
            }
            _ if !queue.existed => notes.push(Fidelity::lost(
                subject,
                what,
                "made anew: it is down, in no bridge, and without an address; \
                 ip link set it up as it was",
            )),
            _ => {}
        }
        self.queues.push(queue);
    }

    /// A queue by which things can be sent, should the first one be out of service.
    pub fn in_service(&mut self, interface: &str, pid: i32, file: ObjectId) {
        let queue = self.queues.iter_mut().find(|q| q.interface == interface);
        if let Some(queue) = queue.filter(|q| q.detached) {
            (queue.pid, queue.file, queue.detached) = (pid, file, false);
        }
    }

    /// Configures all interfaces.
    pub fn connect(&mut self, dataset: &Dataset, family: &Family<'_>, notes: &mut Vec<Fidelity>) {
        if self.queues.is_empty() {
            return;
        }
        let mut netlink = match Rtnetlink::open() {
            Ok(netlink) => netlink,
            Err(error) => {
                for queue in &self.queues {
                    notes.push(not_done(queue, "configuration", &error));
                }
                return;
            }
        };
        for queue in &self.queues {
            let open = open_queue(dataset, family, queue);
            if let Err(error) = &open {
                notes.push(not_done(queue, "announcement", error));
            }
            self.open.push(open.ok());
            if let Some((link, ..)) = facts(dataset, queue) {
                let mut setup = Setup {
                    netlink: &mut netlink,
                    queue,
                    link,
                    undo: &mut self.undo,
                    notes: &mut *notes,
                };
                setup.all();
            }
        }
    }

    /// The processes run: nothing is undone any more, what was persistent is so again, and the
    /// network is told where the guests are.
    pub fn settle(&mut self, dataset: &Dataset, announced: bool, notes: &mut Vec<Fidelity>) {
        self.undo.clear();
        let mut packets = Vec::new();
        for (queue, file) in self.queues.iter().zip(&self.open) {
            let (Some(file), Some((link, flags, header, persist))) = (file, facts(dataset, queue))
            else {
                continue;
            };
            if persist
                && !queue.existed
                && let Err(error) = netlink::set_persistent(file, true)
            {
                notes.push(not_done(queue, "persistence", &error));
            }
            let frames = announce::packets(link, flags, header);
            if announced && link.up && !frames.is_empty() {
                packets.push((queue, file, frames));
            }
        }
        for round in 0..2 {
            if round == 1 && !packets.is_empty() {
                std::thread::sleep(PAUSE);
            }
            for (queue, file, frames) in &packets {
                await_forwarding(&queue.name);
                for frame in frames {
                    if let Err(error) = (&**file).write_all(frame) {
                        tracing::warn!("{}: the guest could not be announced: {error}", queue.name);
                    }
                }
            }
        }
    }
}

/// What the dataset says of a queue: its interface, flags, length of its header, persistence.
fn facts<'d>(dataset: &'d Dataset, queue: &Queue) -> Option<(&'d TapLink, u32, u32, bool)> {
    match &dataset.file(queue.file)?.kind {
        FileKind::Tun {
            link: Some(link),
            flags,
            vnet_header_len,
            persist,
            ..
        } => Some((link, *flags, *vnet_header_len, *persist)),
        _ => None,
    }
}

/// A descriptor of our own for the queue.
fn open_queue(dataset: &Dataset, family: &Family<'_>, queue: &Queue) -> io::Result<File> {
    let holder = family.stubs.iter().find_map(|stub| {
        let fd = stub.process.fds.iter().find(|f| f.file == queue.file)?;
        Some((stub.pid, fd.fd))
    });
    debug_assert!(dataset.file(queue.file).is_some());
    let (pid, fd) = holder.ok_or_else(|| io::Error::other("no process has it open"))?;
    pidfd::take(pid, fd).map(File::from)
}

fn class(interface: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface)
}

fn attribute_of(interface: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(class(interface).join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn index_of(interface: &str) -> io::Result<u32> {
    attribute_of(interface, "ifindex")
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{interface} has no number")))
}

/// The bridge begins to forward when it has seen that the port is up.
fn await_forwarding(interface: &str) {
    /// BR_STATE_FORWARDING.
    const FORWARDING: &str = "3";
    let deadline = Instant::now() + PATIENCE;
    while attribute_of(interface, "brport/state").is_some_and(|state| state != FORWARDING)
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn not_done(queue: &Queue, what: &str, error: &io::Error) -> Fidelity {
    Fidelity::lost(
        format!("pid {}", queue.pid),
        format!("network interface {}: {what}", queue.name),
        error.to_string(),
    )
}

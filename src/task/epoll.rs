//! Epoll instances: `struct eventpoll`.

use crate::dataset::{EpollWatch, FileKind, ObjectId};
use crate::kernel::{Kernel, KernelError, Object, containers};

use super::extract::Extraction;
use super::list::int;

/// epoll_wait, epoll_pwait, epoll_pwait2.
pub(super) const WAITS: [u64; 3] = [232, 281, 441];

/// `epitem.ovflist_next` of an item that is not on the overflow list.
const NOT_ACTIVE: u64 = u64::MAX;

/// Reads the `eventpoll` at `addr` with its watches.
pub(super) fn kind(kernel: &Kernel, addr: u64) -> Result<FileKind, KernelError> {
    let instance = kernel.object("eventpoll", addr)?;
    let items = containers::rbtree(&instance.get("rbr.rb_root")?, "epitem", "rbn")?;
    let watches = items
        .iter()
        .map(|item| {
            let events = u32::try_from(item.u("event.events")?).unwrap_or(0);
            Ok(EpollWatch {
                fd: int(item, "ffd.fd")?,
                file: ObjectId(item.ptr("ffd.file")?),
                events,
                data: item.u("event.data")?,
                pending: pending(item)? || waits_for_room(item, events)?,
            })
        })
        .collect::<Result<_, KernelError>>()?;
    Ok(FileKind::Epoll { watches })
}

/// On the ready list, or on the one that takes its place while events are
/// being handed out.
fn pending(item: &Object<'_>) -> Result<bool, KernelError> {
    let link = item.get("rdllink")?;
    // Renamed in 2026, also in stable kernels (6.12.117 of Debian has it).
    let newer = "ovflist_next";
    let overflow = if item.has(newer) { newer } else { "next" };
    Ok(link.ptr("next")? != link.addr() || item.ptr(overflow)? != NOT_ACTIVE)
}

/// A program that found no room at an edge-triggered socket waits for the edge at which there is
/// some. The same queue takes less of a restored socket's room (nobody knows how it was packed), so
/// that edge could be over before anybody looks: room that there is now is told.
fn waits_for_room(item: &Object<'_>, events: u32) -> Result<bool, KernelError> {
    /// EPOLLOUT.
    const ROOM: u32 = 4;
    /// SOCK_NOSPACE, a bit's number in `socket.flags`. Linux include/linux/net.h.
    const NO_SPACE: u64 = 2;
    /// S_IFMT, S_IFSOCK.
    const KIND: u64 = 0o170_000;
    const SOCKET: u64 = 0o140_000;
    if events & EDGE_TRIGGERED == 0 || events & ROOM == 0 {
        return Ok(false);
    }
    let file = item.follow("ffd.file")?;
    if file.follow("f_inode")?.u("i_mode")? & KIND != SOCKET {
        return Ok(false);
    }
    let socket = item.kernel().object("socket", file.ptr("private_data")?)?;
    Ok(socket.u("flags")? >> NO_SPACE & 1 != 0)
}

/// Where a thread was taking events as the host died, an edge may have left
/// the ready list for a buffer that nobody will read: all edges are told again.
pub(super) fn tell_again(x: &mut Extraction<'_, '_>) {
    let busy = std::mem::take(&mut x.busy_epolls);
    let mut notes = Vec::new();
    for file in x.out.files.iter_mut().filter(|f| busy.contains(&f.id.0)) {
        let FileKind::Epoll { watches } = &mut file.kind else {
            continue;
        };
        let mut told = 0;
        for watch in watches.iter_mut().filter(|watch| !watch.pending) {
            watch.pending = true;
            told += usize::from(watch.events & EDGE_TRIGGERED != 0);
        }
        if told > 0 {
            notes.push((file.path.clone(), told));
        }
    }
    for (path, told) in notes {
        x.reconstructed(
            &path,
            "edges that were being handed out",
            format!("{told} edge-triggered watches are told of what is ready once more"),
        );
    }
}

/// EPOLLET.
const EDGE_TRIGGERED: u32 = 1 << 31;

//! Epoll instances: `struct eventpoll`.

use crate::dataset::{EpollWatch, FileKind, ObjectId};
use crate::kernel::{Kernel, KernelError, containers};

use super::list::int;

/// Reads the `eventpoll` at `addr` with its watches.
pub(super) fn kind(kernel: &Kernel, addr: u64) -> Result<FileKind, KernelError> {
    let instance = kernel.object("eventpoll", addr)?;
    let items = containers::rbtree(&instance.get("rbr.rb_root")?, "epitem", "rbn")?;
    let watches = items
        .iter()
        .map(|item| {
            Ok(EpollWatch {
                fd: int(item, "ffd.fd")?,
                file: ObjectId(item.ptr("ffd.file")?),
                events: u32::try_from(item.u("event.events")?).unwrap_or(0),
                data: item.u("event.data")?,
            })
        })
        .collect::<Result<_, KernelError>>()?;
    Ok(FileKind::Epoll { watches })
}

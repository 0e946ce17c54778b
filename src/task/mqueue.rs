//! POSIX message queues of the dead kernel.

use super::extract::Extraction;
use super::list::int;
use super::namespace::IdMaps;
use super::path::Name;
use super::sysv::{self, queues};
use crate::dataset::{Blob, FileKind, MessageQueue, ObjectId, QueueNotice};
use crate::kernel::{Kernel, KernelError, Object, containers};

/// `sigev_notify`: by a thread of the C library's, through a socket.
const SIGEV_THREAD: i32 = 2;

/// An open file of a queue, which is read when it is new.
pub(super) fn kind<'k>(
    x: &mut Extraction<'_, 'k>,
    inode: &Object<'k>,
    name: &Name,
) -> Result<FileKind, KernelError> {
    let queue = ObjectId(inode.addr());
    if x.out.message_queues.iter().all(|known| known.id != queue) {
        let read = read(x.kernel, inode, name)?;
        if let Some(notice) = &read.notify
            && notice.how == SIGEV_THREAD
        {
            x.lost(
                &format!("POSIX message queue /{}", read.name),
                "notification",
                format!(
                    "a thread of pid {} was to be started (SIGEV_THREAD): it has to ask anew",
                    notice.pid
                ),
            );
        }
        x.out.message_queues.push(MessageQueue {
            notify: read.notify.filter(|notice| notice.how != SIGEV_THREAD),
            ..read
        });
    }
    Ok(FileKind::MessageQueue { queue })
}

fn read(kernel: &Kernel, inode: &Object<'_>, name: &Name) -> Result<MessageQueue, KernelError> {
    let info = inode.container_of("mqueue_inode_info", "vfs_inode")?;
    let id = |field: &str| -> Result<u32, KernelError> {
        Ok(u32::try_from(inode.u(field)?).unwrap_or(u32::MAX))
    };
    // Whose IDs those are is not known of a queue: as the host numbers them.
    let maps = IdMaps::default();
    let (mut messages, mut left) = (Vec::new(), queues::MOST);
    let tree = info.get("msg_tree")?;
    for node in containers::rbtree(&tree, "posix_msg_tree_node", "rb_node")? {
        messages.extend(queues::messages(&node.get("msg_list")?, &mut left)?);
    }
    let notify = match sysv::pid_of(&info, "notify_owner")? {
        0 => None,
        pid => {
            let event = kernel.object("sigevent", info.get("notify")?.addr())?;
            Some(QueueNotice {
                pid,
                how: int(&event, "sigev_notify")?,
                signal: int(&event, "sigev_signo")?,
                value: Blob(event.get("sigev_value")?.bytes()?),
            })
        }
    };
    let last = name.path.rsplit('/').next().unwrap_or_default();
    Ok(MessageQueue {
        id: ObjectId(inode.addr()),
        name: last.to_owned(),
        removed: name.deleted,
        mode: super::inode::mode(inode)? & 0o7777,
        uid: maps.user(id("i_uid.val")?),
        gid: maps.group(id("i_gid.val")?),
        max_messages: info.u("attr.mq_maxmsg")?,
        max_size: info.u("attr.mq_msgsize")?,
        messages,
        notify,
    })
}

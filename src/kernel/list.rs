//! Linked lists: `list_head`, `hlist_head`, `hlist_nulls_head`, `llist_head`.

use super::{KernelError, Object};

/// Beyond this, a list is a fault. The longest that are read are those of tasks, of which there are
/// at most four million (Linux include/linux/threads.h: PID_MAX_LIMIT).
const MAX_LEN: usize = 1 << 22;

/// Finds a circle that does not lead back to the head, by Brent's method: one comparison a step.
struct Circle {
    what: &'static str,
    head: u64,
    mark: u64,
    steps: usize,
    next_mark: usize,
}

impl Circle {
    fn new(what: &'static str, head: u64) -> Circle {
        Circle {
            what,
            head,
            mark: 0,
            steps: 0,
            next_mark: 1,
        }
    }

    fn step(&mut self, node: u64) -> Result<(), KernelError> {
        self.steps += 1;
        let detail = if node == self.mark {
            format!(
                "after {} entries it goes in a circle, at {node:#x}",
                self.steps
            )
        } else if self.steps > MAX_LEN {
            format!("it has more than {MAX_LEN} entries, at {node:#x}")
        } else {
            String::new()
        };
        if !detail.is_empty() {
            return Err(KernelError::Damaged {
                what: self.what,
                addr: self.head,
                detail,
            });
        }
        if self.steps == self.next_mark {
            self.next_mark *= 2;
            self.mark = node;
        }
        Ok(())
    }
}

/// The entries of a doubly linked list. `head` is the `struct list_head` that is no entry itself;
/// the entries are of type `ty`, linked by their member `member`.
pub fn list<'k>(head: &Object<'k>, ty: &str, member: &str) -> Result<Vec<Object<'k>>, KernelError> {
    let mut entries = Vec::new();
    let mut circle = Circle::new("list", head.addr());
    let mut node = head.follow("next")?;
    let mut previous = head.addr();
    while node.addr() != head.addr() {
        circle.step(node.addr())?;
        entries.push(node.container_of(ty, member)?);
        let next = node.follow("next").map_err(|error| match error {
            // Say where the list broke, not only that a pointer was bad.
            KernelError::Null { .. } | KernelError::Unmapped { .. } => KernelError::Damaged {
                what: "list",
                addr: head.addr(),
                detail: format!(
                    "after {} entries, {:#x} (reached from {previous:#x}) leads nowhere: {error}",
                    entries.len(),
                    node.addr()
                ),
            },
            other => other,
        })?;
        previous = node.addr();
        node = next;
    }
    Ok(entries)
}

/// The entries of a singly linked hash list: `head` is a `struct hlist_head`.
pub fn hlist<'k>(
    head: &Object<'k>,
    ty: &str,
    member: &str,
) -> Result<Vec<Object<'k>>, KernelError> {
    chain(head, "hlist", ty, member, |_| false)
}

/// The same for a `struct hlist_nulls_head`, whose end is an odd number.
pub fn hlist_nulls<'k>(
    head: &Object<'k>,
    ty: &str,
    member: &str,
) -> Result<Vec<Object<'k>>, KernelError> {
    chain(head, "hlist_nulls", ty, member, |node| node & 1 != 0)
}

/// The entries of a lock-less list, the youngest first: `head` is a `struct llist_head`.
pub fn llist<'k>(
    head: &Object<'k>,
    ty: &str,
    member: &str,
) -> Result<Vec<Object<'k>>, KernelError> {
    chain(head, "llist", ty, member, |_| false)
}

/// A chain from `first` through `next` to null, or to what `is_end` knows.
fn chain<'k>(
    head: &Object<'k>,
    what: &'static str,
    ty: &str,
    member: &str,
    is_end: impl Fn(u64) -> bool,
) -> Result<Vec<Object<'k>>, KernelError> {
    let mut entries = Vec::new();
    let mut circle = Circle::new(what, head.addr());
    let mut pointer = head.get("first")?;
    loop {
        let addr = pointer.unsigned()?;
        if addr == 0 || is_end(addr) {
            return Ok(entries);
        }
        circle.step(addr)?;
        let node = pointer.deref()?;
        entries.push(node.container_of(ty, member)?);
        pointer = node.get("next")?;
    }
}

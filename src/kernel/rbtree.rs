//! Red-black trees, among them timer queues.

use super::{KernelError, Object};

/// A red-black tree of 2⁶⁴ nodes is not higher.
const MAX_HEIGHT: usize = 128;

/// The entries of a red-black tree in order. `root` is a `struct rb_root` or `rb_root_cached` (a
/// `timerqueue_head` has one in `rb_root`); the entries are of type `ty`, linked by the `rb_node` at
/// `member`, which may be a path ("node.node" of an `hrtimer`).
pub fn rbtree<'k>(
    root: &Object<'k>,
    ty: &str,
    member: &str,
) -> Result<Vec<Object<'k>>, KernelError> {
    let root = if root.has("rb_root") {
        root.get("rb_root")?
    } else {
        root.clone()
    };
    let mut entries = Vec::new();
    // The nodes whose left side is being walked.
    let mut above: Vec<Object<'k>> = Vec::new();
    let mut next = child_of(&root, "rb_node", 0)?;
    loop {
        while let Some(node) = next {
            if above.len() >= MAX_HEIGHT {
                return Err(KernelError::Damaged {
                    what: "rbtree",
                    addr: root.addr(),
                    detail: format!("it is higher than {MAX_HEIGHT} at {:#x}", node.addr()),
                });
            }
            next = child_of(&node, "rb_left", node.addr())?;
            above.push(node);
        }
        let Some(node) = above.pop() else {
            return Ok(entries);
        };
        entries.push(node.container_of(ty, member)?);
        let (left, right) = (node.ptr("rb_left")?, node.ptr("rb_right")?);
        if left == right && left != 0 {
            // Forty such nodes would be a tree without end.
            return Err(KernelError::Damaged {
                what: "rbtree",
                addr: node.addr(),
                detail: format!("both its children are {left:#x}"),
            });
        }
        next = child_of(&node, "rb_right", node.addr())?;
    }
}

/// A child, which must know its parent: so that no node is met twice, and every walk ends.
fn child_of<'k>(
    of: &Object<'k>,
    link: &str,
    parent: u64,
) -> Result<Option<Object<'k>>, KernelError> {
    let Some(child) = of.follow_opt(link)? else {
        return Ok(None);
    };
    // The lowest bit is the colour.
    let says = child.u("__rb_parent_color")? & !3;
    if says != parent {
        return Err(KernelError::Damaged {
            what: "rbtree",
            addr: child.addr(),
            detail: format!("its parent is {parent:#x}, but it says {says:#x}"),
        });
    }
    Ok(Some(child))
}

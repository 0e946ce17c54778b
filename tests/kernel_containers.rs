//! Lists and trees of a kernel written by hand, whole and damaged.

#![allow(missing_docs)]

mod tiny_kernel;

use tiny_kernel::world::{self, ITEM_HASH, ITEM_LIST, ITEM_RB, ITEM_VALUE};
use tiny_kernel::{DIRECT, Encoding, TinyKernel, words};
use vmrestore::kernel::{Kernel, KernelError, containers};

/// Memory in which tests lay out nodes at will: 64 KiB apart from everything else.
const ARENA: u64 = DIRECT + 0x30_0000;

fn open(build: impl FnOnce(&mut TinyKernel)) -> Kernel {
    let mut tiny = TinyKernel::new(true);
    let (types, _) = world::types();
    build(&mut tiny);
    let info = tiny.finish(&types, Encoding::Relative);
    tiny.open(&info).expect("opens")
}

fn item(n: u64) -> u64 {
    ARENA + 0x1000 + n * 72
}

fn values(items: &[vmrestore::kernel::Object<'_>]) -> Vec<u64> {
    items.iter().map(|item| item.u("value").unwrap()).collect()
}

fn is_damaged<T: std::fmt::Debug>(result: Result<T, KernelError>, what: &str) -> String {
    match result {
        Err(KernelError::Damaged {
            what: said, detail, ..
        }) if said == what => detail,
        other => panic!("expected a damaged {what}, got {other:?}"),
    }
}

/// Links items by `next`, at bytes 8 of the `list_head`.
fn put_list(tiny: &mut TinyKernel, head: u64, items: &[u64]) {
    let mut from = head;
    for &n in items {
        tiny.poke(from + 8, item(n) + ITEM_LIST);
        tiny.poke(item(n) + ITEM_VALUE, n);
        from = item(n) + ITEM_LIST;
    }
    tiny.poke(from + 8, head);
}

#[test]
fn lists_are_told_in_order() {
    let kernel = open(|tiny| {
        put_list(tiny, ARENA, &[3, 1, 2]);
        put_list(tiny, ARENA + 0x40, &[]);
    });
    let list = |at| {
        let head = kernel.object("list_head", at).unwrap();
        containers::list(&head, "item", "list").unwrap()
    };
    assert_eq!(values(&list(ARENA)), [3, 1, 2]);
    assert_eq!(list(ARENA)[1].addr(), item(1));
    assert!(list(ARENA + 0x40).is_empty());
}

#[test]
fn a_list_that_never_comes_back_is_damaged() {
    for circle_from in [1, 2, 7, 40] {
        let kernel = open(|tiny| {
            put_list(tiny, ARENA, &(0..41).collect::<Vec<_>>());
            // The last item leads back into the middle.
            tiny.poke(item(40) + ITEM_LIST + 8, item(circle_from) + ITEM_LIST);
        });
        let head = kernel.object("list_head", ARENA).unwrap();
        let detail = is_damaged(containers::list(&head, "item", "list"), "list");
        assert!(detail.contains("circle"), "{detail}");
    }
    let kernel = open(|tiny| {
        put_list(tiny, ARENA, &[0, 1]);
        tiny.poke(item(1) + ITEM_LIST + 8, 0x1000);
    });
    let head = kernel.object("list_head", ARENA).unwrap();
    is_damaged(containers::list(&head, "item", "list"), "list");
}

#[test]
fn hash_lists_end_at_null_or_at_an_odd_number() {
    let kernel = open(|tiny| {
        for (head, first_at, end) in [(ARENA, 8, 0), (ARENA + 0x40, 0, 0x51)] {
            tiny.poke(head + first_at, item(5) + ITEM_HASH);
            tiny.poke(item(5) + ITEM_HASH + 8, item(6) + ITEM_HASH);
            tiny.poke(item(6) + ITEM_HASH + 8, end);
            if end == 0 {
                tiny.poke(item(5) + ITEM_VALUE, 5);
                tiny.poke(item(6) + ITEM_VALUE, 6);
            }
        }
    });
    let nulls = kernel.object("hlist_nulls_head", ARENA + 0x40).unwrap();
    let found = containers::hlist_nulls(&nulls, "item", "hash").unwrap();
    assert_eq!(values(&found), [5, 6]);
    // The same chain without knowing of odd ends runs into nothing.
    let plain = kernel.object("hlist_head", ARENA).unwrap();
    assert!(containers::hlist(&plain, "item", "hash").is_err());
}

/// Builds a search tree of the values `from..to`; the root's address.
fn put_tree(tiny: &mut TinyKernel, from: u64, to: u64, parent: u64) -> u64 {
    if from >= to {
        return 0;
    }
    let middle = (from + to) / 2;
    let node = item(middle) + ITEM_RB;
    tiny.poke(item(middle) + ITEM_VALUE, middle);
    let left = put_tree(tiny, from, middle, node);
    let right = put_tree(tiny, middle + 1, to, node);
    let colour = middle & 1;
    let links = words(&[left, right, parent | colour]);
    tiny.put(node - DIRECT, &links);
    node
}

#[test]
fn red_black_trees_are_told_in_order() {
    for count in [0, 1, 2, 100] {
        let kernel = open(|tiny| {
            let root = put_tree(tiny, 0, count, 0);
            tiny.poke(ARENA + 8, root);
        });
        // An rb_root_cached, whose root is its second word here.
        let root = kernel.object("rb_root_cached", ARENA).unwrap();
        let found = containers::rbtree(&root, "item", "rb.node").unwrap();
        assert_eq!(values(&found), (0..count).collect::<Vec<_>>());
        let plain = kernel.object("rb_root", ARENA + 8).unwrap();
        assert_eq!(
            containers::rbtree(&plain, "item", "rb.node").unwrap(),
            found
        );
    }
}

#[test]
fn a_tree_whose_nodes_have_one_child_twice_is_damaged() {
    let kernel = open(|tiny| {
        // Sixty of them would be a walk of 2⁶⁰ steps.
        for n in 0..60 {
            let child = item(n + 1) + ITEM_RB;
            let parent = if n == 0 { 0 } else { item(n - 1) + ITEM_RB };
            tiny.put(item(n) + ITEM_RB - DIRECT, &words(&[child, child, parent]));
        }
        let last = words(&[0, 0, item(59) + ITEM_RB]);
        tiny.put(item(60) + ITEM_RB - DIRECT, &last);
        tiny.poke(ARENA, item(0) + ITEM_RB);
    });
    let root = kernel.object("rb_root", ARENA).unwrap();
    is_damaged(containers::rbtree(&root, "item", "rb.node"), "rbtree");
}

#[test]
fn a_tree_whose_child_has_another_parent_is_damaged() {
    let kernel = open(|tiny| {
        let root = put_tree(tiny, 0, 20, 0);
        tiny.poke(ARENA, root);
        // A leaf that leads back to the root.
        tiny.poke(item(0) + ITEM_RB, root);
    });
    let root = kernel.object("rb_root", ARENA).unwrap();
    is_damaged(containers::rbtree(&root, "item", "rb.node"), "rbtree");
}

/// Puts an `xa_node`: 64 slots, parent, offset and shift.
fn put_xa_node(
    tiny: &mut TinyKernel,
    at: u64,
    parent: u64,
    offset: u64,
    shift: u64,
    slots: &[(u64, u64)],
) {
    for &(slot, entry) in slots {
        tiny.poke(at + slot * 8, entry);
    }
    tiny.poke(at + 512, parent);
    tiny.poke(at + 520, offset | shift << 8);
}

#[test]
fn xarrays_of_three_levels_with_values_siblings_and_marks() {
    let (top, middle, low) = (ARENA + 0x1000, ARENA + 0x2000, ARENA + 0x3000);
    let build = |tiny: &mut TinyKernel| {
        tiny.poke(ARENA, top | 2);
        put_xa_node(tiny, top, 0, 0, 12, &[(0, middle | 2), (1, 0xdead_0000)]);
        put_xa_node(tiny, middle, top, 0, 6, &[(3, low | 2)]);
        // A value; an entry of 4 indices with its siblings (2 is the canonical slot); XA_ZERO and
        // XA_RETRY, which are empty.
        let sibling = 2 << 2 | 2;
        put_xa_node(
            tiny,
            low,
            middle,
            3,
            0,
            &[
                (0, 99 << 1 | 1),
                (2, 0xbeef_0000),
                (3, sibling),
                (4, sibling),
                (5, sibling),
                (6, 257 << 2 | 2),
                (7, 256 << 2 | 2),
                (63, 0xfeed_0000),
            ],
        );
        // One entry and no node; an empty one; an IDR that counts from 1.
        tiny.poke(ARENA + 0x10, 0xbeef_0000);
        tiny.poke(ARENA + 0x40, 1);
        tiny.poke(ARENA + 0x48, 0xbeef_0000);
    };
    let kernel = open(build);
    let entries = |at| containers::xarray(&kernel.object("xarray", at).unwrap());
    assert_eq!(
        entries(ARENA).unwrap(),
        [
            (192, 199),
            (194, 0xbeef_0000),
            (255, 0xfeed_0000),
            (4096, 0xdead_0000)
        ]
    );
    assert_eq!(entries(ARENA + 0x10).unwrap(), [(0, 0xbeef_0000)]);
    assert_eq!(entries(ARENA + 0x20).unwrap(), []);
    let idr = kernel.object("idr", ARENA + 0x40).unwrap();
    assert_eq!(containers::idr(&idr).unwrap(), [(1, 0xbeef_0000)]);

    // A node that is in two slots knows only one of them.
    let kernel = open(|tiny| {
        build(tiny);
        tiny.poke(middle + 4 * 8, low | 2);
    });
    is_damaged(
        containers::xarray(&kernel.object("xarray", ARENA).unwrap()),
        "struct xa_node",
    );
    let kernel = open(|tiny| {
        build(tiny);
        tiny.poke(low + 8, top | 2);
    });
    is_damaged(
        containers::xarray(&kernel.object("xarray", ARENA).unwrap()),
        "struct xa_node",
    );
}

/// A node's reference in its parent's slot: its type (as `world` numbers them) in bits 3 to 6.
fn maple(at: u64, kind: u64) -> u64 {
    at | kind << 3 | 4
}

const ARANGE: u64 = 0;
const LEAF: u64 = 5;
const DENSE: u64 = 9;

#[test]
fn maple_trees_of_three_kinds_of_nodes() {
    let node = |n: u64| ARENA + 0x1000 + n * 256;
    let build = |tiny: &mut TinyKernel| {
        tiny.poke(ARENA + 8, maple(node(0), ARANGE) | 2);
        let last = u64::MAX;
        // arange: parent, 3 pivots, 4 slots.
        let root = [
            ARENA | 1,
            0x4fff,
            0x5003,
            0,
            maple(node(1), LEAF),
            maple(node(2), DENSE),
            maple(node(3), LEAF),
            0xbad,
        ];
        tiny.put(node(0) - DIRECT, &words(&root));
        // leaf: parent, 4 slots, 3 pivots. A full one, of which the last slot has no pivot.
        let full = [node(0) | 0x18, 0, 0xaa00, 0, 0xbb00, 0xfff, 0x1fff, 0x3fff];
        tiny.put(node(1) - DIRECT, &words(&full));
        let dense = [node(0) | 0x28, 0xcc00, 0, 0xdd00, 257 << 2 | 2];
        tiny.put(node(2) - DIRECT, &words(&dense));
        // A short one: its slots end where the node does, and what follows is not theirs.
        let short = [node(0) | 0x30, 0xee00, 0, 0xbad0, 0xbad1, 0x7fff, last, 0];
        tiny.put(node(3) - DIRECT, &words(&short));
        tiny.poke(ARENA + 0x18, 0xbeef_0000);
    };
    let kernel = open(build);
    let tree = |at| containers::maple_tree(&kernel.object("maple_tree", at).unwrap());
    assert_eq!(
        tree(ARENA).unwrap(),
        [
            (0x1000, 0x1fff, 0xaa00),
            (0x4000, 0x4fff, 0xbb00),
            (0x5000, 0x5000, 0xcc00),
            (0x5002, 0x5002, 0xdd00),
            (0x5004, 0x7fff, 0xee00),
        ]
    );
    assert_eq!(tree(ARENA + 0x10).unwrap(), [(0, 0, 0xbeef_0000)]);
    assert_eq!(tree(ARENA + 0x20).unwrap(), []);

    let damage: [(&str, u64, u64); 5] = [
        ("a node in two slots", node(0) + 6 * 8, maple(node(1), LEAF)),
        ("pivots that go back", node(1) + 6 * 8, 0x10),
        ("a pivot beyond the node", node(1) + 5 * 8, 0x9999),
        ("a kind that is none", node(0) + 4 * 8, maple(node(1), 15)),
        ("an inner slot that is empty", node(0) + 4 * 8, 0),
    ];
    for (what, at, value) in damage {
        let kernel = open(|tiny| {
            build(tiny);
            tiny.poke(at, value);
        });
        let result = containers::maple_tree(&kernel.object("maple_tree", ARENA).unwrap());
        assert!(
            matches!(result, Err(KernelError::Damaged { .. })),
            "{what}: {result:?}"
        );
    }
}

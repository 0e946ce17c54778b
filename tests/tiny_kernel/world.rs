//! The types that the walkers need, laid out as no Linux lays them out.

use super::btf::Types;

/// Numbers of the types that tests build on.
pub struct Numbers {
    pub u8: u32,
    pub u32: u32,
    pub i32: u32,
    pub u64: u32,
    pub void_pointer: u32,
    pub list_head: u32,
}

/// Offset of `item.list`, `item.hash`, `item.rb` and `item.value`.
pub const ITEM_LIST: u64 = 8;
pub const ITEM_HASH: u64 = 24;
pub const ITEM_RB: u64 = 40;
pub const ITEM_VALUE: u64 = 64;

pub fn types() -> (Types, Numbers) {
    let mut t = Types::new();
    let u8 = t.int("unsigned char", 1, false);
    let char = t.int("char", 1, true);
    let i32 = t.int("int", 4, true);
    let u32 = t.int("unsigned int", 4, false);
    let u64 = t.int("long unsigned int", 8, false);
    let void_pointer = t.pointer(0);
    t.typedef("u64", u64);

    // prev first: Linux has next first.
    let forward = t.forward("list_head");
    let link = t.pointer(forward);
    let list_head = t.structure(
        "list_head",
        16,
        &[("prev", link, 0, 0), ("next", link, 64, 0)],
    );

    let forward = t.forward("hlist_node");
    let link = t.pointer(forward);
    let hlist_node = t.structure(
        "hlist_node",
        16,
        &[("pprev", link, 0, 0), ("next", link, 64, 0)],
    );
    t.structure(
        "hlist_head",
        16,
        &[("padding", u64, 0, 0), ("first", link, 64, 0)],
    );
    t.structure("hlist_nulls_head", 8, &[("first", link, 0, 0)]);

    let forward = t.forward("rb_node");
    let link = t.pointer(forward);
    let rb_node = t.structure(
        "rb_node",
        24,
        &[
            ("rb_left", link, 0, 0),
            ("rb_right", link, 64, 0),
            ("__rb_parent_color", u64, 128, 0),
        ],
    );
    let rb_root = t.structure("rb_root", 8, &[("rb_node", link, 0, 0)]);
    t.structure(
        "rb_root_cached",
        16,
        &[("rb_leftmost", link, 0, 0), ("rb_root", rb_root, 64, 0)],
    );

    let nested = t.structure("nested", 24, &[("node", rb_node, 0, 0)]);
    t.structure(
        "item",
        72,
        &[
            ("list", list_head, ITEM_LIST as u32 * 8, 0),
            ("hash", hlist_node, ITEM_HASH as u32 * 8, 0),
            ("rb", nested, ITEM_RB as u32 * 8, 0),
            ("value", u32, ITEM_VALUE as u32 * 8, 0),
        ],
    );

    let forward = t.forward("xa_node");
    let link = t.pointer(forward);
    let slots = t.array(void_pointer, 64);
    t.structure(
        "xa_node",
        528,
        &[
            ("slots", slots, 0, 0),
            ("parent", link, 512 * 8, 0),
            ("offset", u8, 520 * 8, 0),
            ("shift", u8, 521 * 8, 0),
        ],
    );
    let xarray = t.structure(
        "xarray",
        16,
        &[("xa_head", void_pointer, 0, 0), ("xa_flags", u32, 64, 0)],
    );
    t.structure(
        "idr",
        24,
        &[("idr_base", u32, 0, 0), ("idr_rt", xarray, 64, 0)],
    );

    let pivots = t.array(u64, 3);
    let slots = t.array(void_pointer, 4);
    let range = t.structure(
        "maple_range_64",
        64,
        &[("slot", slots, 64, 0), ("pivot", pivots, 320, 0)],
    );
    let arange = t.structure(
        "maple_arange_64",
        64,
        &[("pivot", pivots, 64, 0), ("slot", slots, 256, 0)],
    );
    let bodies = t.union("", 64, &[("mr64", range, 0, 0), ("ma64", arange, 0, 0)]);
    let parent = t.pointer(0);
    let dense = t.structure("", 40, &[("parent", parent, 0, 0), ("slot", slots, 64, 0)]);
    t.union("maple_node", 256, &[("", dense, 0, 0), ("", bodies, 0, 0)]);
    t.structure(
        "maple_tree",
        16,
        &[("ma_flags", u32, 0, 0), ("ma_root", parent, 64, 0)],
    );
    t.enumeration(
        "maple_type",
        false,
        &[
            ("maple_arange_64", 0),
            ("maple_range_64", 1),
            ("maple_leaf_64", 5),
            ("maple_dense", 9),
        ],
    );

    t.structure("page", 80, &[("flags", u64, 0, 0)]);
    let bits = t.array(u64, 2);
    t.structure("cpumask", 16, &[("bits", bits, 0, 0)]);

    let name = t.array(char, 24);
    let symbols = t.structure(
        "mod_kallsyms",
        24,
        &[
            ("num_symtab", u32, 0, 0),
            ("strtab", void_pointer, 64, 0),
            ("symtab", void_pointer, 128, 0),
        ],
    );
    let symbols = t.pointer(symbols);
    let layout = t.structure(
        "module_layout",
        16,
        &[("size", u32, 0, 0), ("base", void_pointer, 64, 0)],
    );
    let module = t.structure(
        "module",
        72,
        &[
            ("kallsyms", symbols, 0, 0),
            ("core_layout", layout, 64, 0),
            ("name", name, 192, 0),
            ("list", list_head, 384, 0),
        ],
    );
    let btf = t.structure(
        "btf",
        16,
        &[("data_size", u32, 0, 0), ("data", void_pointer, 64, 0)],
    );
    let (btf, module) = (t.pointer(btf), t.pointer(module));
    t.structure(
        "btf_module",
        32,
        &[
            ("btf", btf, 0, 0),
            ("list", list_head, 64, 0),
            ("module", module, 192, 0),
        ],
    );
    t.others(i32);
    let numbers = Numbers {
        u8,
        u32,
        i32,
        u64,
        void_pointer,
        list_head,
    };
    (t, numbers)
}

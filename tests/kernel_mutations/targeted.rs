//! Structures that lead to themselves, and absurd counts, one by one: each is told by the name of
//! the structure, the field or number that is wrong, and the address.

use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

use super::overlay::Overlay;
use vmrestore::dump::Dump;
use vmrestore::extract::DeadHost;
use vmrestore::kernel::{Kernel, KernelError, Object, containers};

/// The guest that is damaged, and its VMM.
struct Victim<'k> {
    kernel: &'k Kernel,
    task: Object<'k>,
    mm: Object<'k>,
    kvm: Object<'k>,
    vcpu: Object<'k>,
    /// A `struct dentry` two levels below a root.
    dentry: Object<'k>,
}

type Found = Result<Vec<(u64, u64)>, KernelError>;

/// What is damaged, the kernel address and new value of each word of it, and what must be said.
struct Case {
    name: &'static str,
    words: fn(&Victim<'_>) -> Found,
    /// The structure, and a part of what is wrong with it.
    says: &'static [&'static str],
}

fn member(object: &Object<'_>, path: &str) -> Result<u64, KernelError> {
    Ok(object.get(path)?.addr())
}

/// A new value for the low four bytes of the word at a member.
fn low(object: &Object<'_>, path: &str, value: u32) -> Found {
    let at = member(object, path)?;
    let word = object.kernel().read_u64(at)?;
    Ok(vec![(at, word & !0xffff_ffff | u64::from(value))])
}

const CASES: &[Case] = &[
    Case {
        name: "a dentry that is its grandparent's parent",
        words: |v| {
            let parent = v.dentry.follow("d_parent")?;
            Ok(vec![(member(&parent, "d_parent")?, v.dentry.addr())])
        },
        says: &["chain of dentries", "no root within"],
    },
    Case {
        name: "a thread list that does not come back to its head",
        words: |v| {
            let node = member(&v.task, "thread_node.next")?;
            Ok(vec![(node, member(&v.task, "thread_node")?)])
        },
        says: &["list", "circle"],
    },
    Case {
        name: "a top page table that is its own entry",
        words: |v| {
            let pgd = v.mm.ptr("pgd")?;
            let entry = v.kernel.virt_to_phys(pgd)? | 0x67;
            Ok((0..256).map(|i| (pgd + i * 8, entry)).collect())
        },
        says: &["page table", "leads back to a table above it"],
    },
    Case {
        name: "a node of the area tree that is its own child",
        words: |v| {
            let root = v.mm.ptr("mm_mt.ma_root")?;
            let node = v.kernel.object("maple_node", root & !0xff)?;
            Ok(vec![
                (member(&node, "ma64.slot[0]")?, root),
                (member(&node, "mr64.slot[0]")?, root),
            ])
        },
        says: &["struct maple_node", "parent"],
    },
    Case {
        name: "a descriptor table of four billion",
        words: |v| low(&v.task.follow("files")?.follow("fdt")?, "max_fds", u32::MAX),
        says: &["fdtable", "max_fds is 4294967295"],
    },
    Case {
        name: "a descriptor table that is the kernel's text",
        words: |v| {
            let table = v.task.follow("files")?.follow("fdt")?;
            let text = v.kernel.symbol("_stext")?;
            let mut words = low(&table, "max_fds", 1 << 20)?;
            words.push((member(&table, "fd")?, text));
            words.push((member(&table, "open_fds")?, text));
            Ok(words)
        },
        says: &["fdtable", "fd leads to more than 16384 files"],
    },
    Case {
        name: "two billion vCPUs",
        words: |v| low(&v.kvm, "online_vcpus.counter", 0x7fff_ffff),
        says: &["kvm.online_vcpus", "2147483647"],
    },
    Case {
        name: "an array of vCPUs whose node is its own child",
        words: |v| {
            // One vCPU needs no node: one of shift 6 is made of a page that nobody else reads.
            let node = v.kernel.symbol("empty_zero_page")?;
            let node = v.kernel.object("xa_node", node)?;
            let entry = node.addr() | 2;
            Ok(vec![
                (member(&v.kvm, "vcpu_array.xa_head")?, entry),
                (member(&node, "shift")?, 6),
                (member(&node, "parent")?, 0),
                (member(&node, "slots[0]")?, entry),
            ])
        },
        says: &["struct xa_node", "parent 0x0 slot 0 shift 6"],
    },
    Case {
        name: "memory slots that are each other's children",
        words: |v| {
            let set = v.kvm.follow("memslots[0]")?;
            let root = set.ptr("gfn_tree.rb_node")?;
            let node = v.kernel.object("rb_node", root)?;
            Ok(vec![
                (member(&node, "rb_left")?, root),
                (member(&node, "rb_right")?, root),
            ])
        },
        says: &["rbtree", "parent"],
    },
    Case {
        name: "four billion interrupt routes",
        words: |v| low(&v.kvm.follow("irq_routing")?, "nr_rt_entries", u32::MAX),
        says: &["nr_rt_entries", "4294967295"],
    },
    Case {
        name: "a CPUID table of four billion entries",
        words: |v| low(&v.vcpu, "arch.cpuid_nent", u32::MAX),
        says: &["cpuid_nent", "4294967295"],
    },
    Case {
        name: "an FPU state of four gigabytes",
        words: |v| {
            let state = v.task.follow("thread.fpu.fpstate")?;
            low(&state, "size", u32::MAX)
        },
        says: &["fpstate", "size is 4294967295"],
    },
    Case {
        name: "an area tree whose root has a parent",
        words: |v| {
            let root = v.mm.ptr("mm_mt.ma_root")?;
            let node = v.kernel.object("maple_node", root & !0xff)?;
            Ok(vec![(member(&node, "parent")?, 0)])
        },
        says: &["struct maple_node", "its parent is 0x0"],
    },
    Case {
        name: "an area that begins elsewhere than its place in the tree",
        words: |v| {
            let areas = containers::maple_tree(&v.mm.get("mm_mt")?)?;
            let area = v.kernel.object("vm_area_struct", areas[0].2)?;
            Ok(vec![(member(&area, "vm_start")?, 0x1000)])
        },
        says: &["vm_area_struct", "it spans 0x1000", "mm_mt"],
    },
];

/// All that was said of the process: why it could not be read, or what of it was lost.
fn said(dead: &DeadHost, pid: i32) -> String {
    let mut text = String::new();
    match dead.dataset(&[pid]) {
        Ok(dataset) => {
            for line in &dataset.fidelity {
                writeln!(text, "{line:?}").unwrap();
            }
        }
        Err(error) => {
            let mut error: Option<&dyn Error> = Some(&error);
            while let Some(cause) = error {
                writeln!(text, "{cause}").unwrap();
                error = cause.source();
            }
        }
    }
    text
}

fn victim<'k>(dead: &DeadHost, sound: &'k Kernel, pid: i32) -> Result<Victim<'k>, KernelError> {
    let process = dead
        .processes()
        .unwrap()
        .into_iter()
        .find(|p| p.pid == pid)
        .unwrap();
    let guest = dead
        .guests()
        .unwrap()
        .into_iter()
        .find(|g| g.pid == pid)
        .unwrap();
    let dataset = dead.dataset(&[pid]).unwrap();
    // Where the directory above is not the root of its file system.
    let deep = dataset
        .files
        .iter()
        .filter(|f| f.inode.is_some())
        .filter_map(|f| {
            sound
                .object("file", f.id.0)
                .ok()?
                .follow("f_path.dentry")
                .ok()
        })
        .find(|dentry| {
            let parent = dentry.follow("d_parent");
            parent.is_ok_and(|p| p.ptr("d_parent").is_ok_and(|above| above != p.addr()))
        })
        .expect("a file in a directory that is no root");
    let task = sound.object("task_struct", process.task)?;
    let kvm = sound.object_in("kvm", "kvm", guest.vm)?;
    let (vm, _) = vmrestore::guest::extract(sound, guest.vm, &dead.host().unwrap()).unwrap();
    Ok(Victim {
        kernel: sound,
        mm: task.follow("mm")?,
        task,
        kvm,
        vcpu: sound.object_in("kvm", "kvm_vcpu", vm.vcpus[0].id.0)?,
        dentry: deep,
    })
}

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn what_leads_to_itself_is_told_by_name_and_address() {
    let path = std::env::var_os("VMRESTORE_TEST_DUMP").expect("VMRESTORE_TEST_DUMP names a dump");
    let dump = Arc::new(Dump::open(path.as_ref()).unwrap());
    let info = dump.vmcoreinfo().expect("a VMCOREINFO note").to_owned();
    let sound = Kernel::open(dump.clone(), &info).unwrap();
    let memory = Arc::new(Overlay::new(dump.clone()));
    let kernel = Kernel::open(memory.clone(), &info).unwrap();
    let dead = DeadHost::with_kernel(dump, kernel);
    let pid = dead.guests().unwrap()[0].pid;
    let before = said(&dead, pid);
    let victim = victim(&dead, &sound, pid).unwrap();
    let mut wrong = Vec::new();
    for case in CASES {
        let words = (case.words)(&victim).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let patches: Vec<(u64, u64)> = words
            .iter()
            .map(|&(at, value)| (sound.virt_to_phys(at).unwrap(), value))
            .collect();
        memory.patch(&patches);
        let after = said(&dead, pid);
        memory.patch(&[]);
        let new: Vec<&str> = after
            .lines()
            .filter(|line| !before.contains(line))
            .collect();
        println!("{}:\n  {}", case.name, new.join("\n  "));
        let told = new
            .iter()
            .any(|line| case.says.iter().all(|s| line.contains(s)) && line.contains("0xff"));
        if !told {
            wrong.push(case.name);
        }
    }
    assert!(wrong.is_empty(), "not told as it should be: {wrong:#?}");
    assert_eq!(said(&dead, pid), before, "the sound dump reads as before");
}

//! Whole dump files: ELF, kdump-compressed, flattened. The format is told by the content, so these
//! differ in what they begin with. And two parts of them alone: notes, and a stored page.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;

use super::kernel_memory;
use super::synth::exercise::exercise;
use super::synth::{self, Kdump, Machine, Noise, PAGE, Slot, flatten};
use vmrestore::dump::Dump;
use vmrestore::kernel::Kernel;

/// A file without a name, in memory.
fn file(bytes: &[u8]) -> File {
    let name = CString::default();
    // SAFETY: the name is a C string; the descriptor that comes back is nobody else's.
    let mut file = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "no memory file");
        File::from_raw_fd(fd)
    };
    file.write_all(bytes).expect("memory");
    file
}

fn open(bytes: &[u8]) -> Option<Dump> {
    let file = file(bytes);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    match Dump::open(&path) {
        Ok(dump) => Some(dump),
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.hint().is_empty());
            None
        }
    }
}

pub fn run(input: &[u8]) {
    if let Some(dump) = open(input) {
        exercise(&dump, &mut Noise(input.len() as u64));
    }
}

/// The input is the notes of an ELF dump; if it has a VMCOREINFO, a kernel is looked for by it.
pub fn run_notes(input: &[u8]) {
    let memory = synth::Segment {
        addr: 0,
        memory: 4096,
        data: vec![0; 4096],
    };
    let Some(dump) = open(&synth::elf_file(input, &[memory])) else {
        return;
    };
    for note in dump.cpu_notes() {
        assert!(note.prstatus.is_some() || note.qemu.is_some());
    }
    if let Some(text) = dump.vmcoreinfo()
        && let Ok(kernel) = Kernel::open(kernel_memory(), text)
    {
        super::ask::symbols(&kernel, &["_stext", "_end", "vmemmap_base"]);
        super::ask::types(&kernel, &["item", "maple_node", "list_head"]);
        let _ = (
            kernel.page_to_pfn(0xffff_d900_0000_0000),
            kernel.modules().is_ok(),
        );
    }
}

/// The first byte is `page_desc.flags`, the rest a page as it is stored.
pub fn run_page(input: &[u8]) {
    let Some((&flags, stored)) = input.split_first() else {
        return;
    };
    let machine = Machine {
        slots: vec![Slot::Data(Box::new([7; PAGE]))],
        vmcoreinfo: None,
        cpus: Vec::new(),
        qemu: false,
    };
    let options = Kdump {
        store: synth::store_raw,
        ..Kdump::default()
    };
    let mut file = machine.kdump(options, &mut Noise(1));
    file.truncate(file.len() - PAGE);
    let desc = file.len() - 24;
    synth::put(&mut file, desc + 8, &(stored.len() as u32).to_le_bytes());
    synth::put(&mut file, desc + 12, &u32::from(flags).to_le_bytes());
    file.extend_from_slice(stored);
    if let Some(dump) = open(&file) {
        exercise(&dump, &mut Noise(u64::from(flags)));
    }
}

fn machine() -> (Machine, Noise) {
    let mut noise = Noise(77);
    let mut machine = Machine::random(&mut noise, 10);
    machine.qemu = true;
    machine.cpus.truncate(1);
    (machine, noise)
}

fn named(name: &str, bytes: Vec<u8>) -> (String, Vec<u8>) {
    (name.to_owned(), bytes)
}

pub fn elf_seeds() -> Vec<(String, Vec<u8>)> {
    let (machine, _) = machine();
    let mut sparse = machine.clone();
    sparse.slots.truncate(3);
    sparse.qemu = false;
    vec![
        named("machine", machine.elf()),
        named("sparse", sparse.elf()),
    ]
}

pub fn kdump_seeds() -> Vec<(String, Vec<u8>)> {
    let (machine, mut noise) = machine();
    let mut seeds = Vec::new();
    for version in 1..=6 {
        let options = Kdump {
            version,
            store: synth::store_mixed,
            ..Kdump::default()
        };
        seeds.push(named(
            &format!("version_{version}"),
            machine.kdump(options, &mut noise),
        ));
    }
    seeds
}

pub fn flattened_seeds() -> Vec<(String, Vec<u8>)> {
    let (machine, mut noise) = machine();
    let options = Kdump {
        store: synth::store_mixed,
        ..Kdump::default()
    };
    let kdump = machine.kdump(options, &mut noise);
    vec![
        named("elf", flatten(&machine.elf(), 3000, true)),
        named("kdump", flatten(&kdump, 4096, true)),
        named(
            "unpadded",
            synth::flatten_without_padding(&kdump, machine.slots.len()),
        ),
    ]
}

pub fn notes_seeds() -> Vec<(String, Vec<u8>)> {
    let (mut machine, _) = machine();
    machine.vmcoreinfo = Some(super::kernel_note());
    // What synth writes as an ELF file's first segment.
    let elf = machine.elf_with(Vec::clear);
    vec![named("qemu", elf[64 + 56..].to_vec())]
}

pub fn page_seeds() -> Vec<(String, Vec<u8>)> {
    let mut noise = Noise(5);
    let mut seeds = Vec::new();
    type Store = fn(&[u8; PAGE], &mut Noise) -> (Vec<u8>, u32);
    let stores: [(&str, Store); 4] = [
        ("zlib", synth::store_zlib),
        ("lzo", synth::store_lzo),
        ("snappy", synth::store_snappy),
        ("zstd", synth::store_zstd),
    ];
    for (name, store) in stores {
        for i in 0..6 {
            let (bytes, flags) = store(&noise.page(), &mut noise);
            seeds.push(named(
                &format!("{name}_{i}"),
                [&[flags as u8], &*bytes].concat(),
            ));
        }
    }
    seeds
}

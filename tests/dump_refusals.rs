//! Files that are not read: each is named for what it is, with a hint, and nothing is guessed.

mod synth;

use synth::{Kdump, Machine, Noise, Segment, TempFile, elf_file, flatten, put};
use vmrestore::dump::{Dump, OpenError};

/// Which of the three kinds of refusal.
#[derive(Debug, PartialEq)]
enum Kind {
    NotADump,
    Unsupported,
    Damaged,
}

#[track_caller]
fn refused(bytes: &[u8], kind: Kind, words: &str) {
    let file = TempFile::new(bytes);
    let error = match Dump::open(file.path()) {
        Ok(dump) => panic!("taken for {}, expected: {words}", dump.format()),
        Err(error) => error,
    };
    let got = match &error {
        OpenError::NotADump { .. } => Kind::NotADump,
        OpenError::Unsupported { .. } => Kind::Unsupported,
        OpenError::Damaged { .. } => Kind::Damaged,
        other => panic!("{other}"),
    };
    let message = error.to_string();
    assert_eq!(got, kind, "{message}");
    assert!(message.contains(words), "{message}\n  lacks: {words}");
    assert!(
        message.contains(file.path().to_str().unwrap()),
        "{message}\n  does not name the file"
    );
    assert!(error.hint().len() > 10);
}

fn machine() -> (Machine, Noise) {
    let mut noise = Noise(1);
    (Machine::random(&mut noise, 60), noise)
}

#[test]
fn files_that_are_no_dumps() {
    use Kind::{NotADump, Unsupported};
    refused(b"", NotADump, "it is empty");
    refused(
        "kernel panic – not syncing\n".as_bytes(),
        NotADump,
        "a text file",
    );
    refused(b"\x1f\x8b\x08\0\0\0\0\0", NotADump, "gzip");
    refused(b"\x28\xb5\x2f\xfd....", NotADump, "zstd");
    refused(b"\xfd7zXZ\0\0\x04", NotADump, "xz");
    refused(&[0; 10_000], NotADump, "begins with zeros");
    refused(
        &[0x80, 1, 2, 3, 0xff, 0xfe, 0x90, 0],
        NotADump,
        "80 01 02 03",
    );
    refused(b"QEVM\0\0\0\x03", NotADump, "QEMU's saved state");
    refused(b"EMiL\x01\0\0\0", Unsupported, "LiME");
    refused(b"PAGEDU64", Unsupported, "Windows");
    refused(b"DISKDUMP\x01\0\0\0", Unsupported, "diskdump");
    refused(b"sadump\0\0\x01\0\0\0", Unsupported, "sadump");
    refused(b"AVML\x02\0\0\0", Unsupported, "AVML");
    refused(b"PAGEDUMP", Unsupported, "32-bit Windows");
    refused(b"minidump FreeBSD/amd64", Unsupported, "FreeBSD");
    refused(b"HIBR\0\0\0\0", Unsupported, "hibernation file of Windows");
    // vmware_vmss.h: 0xbed2bed2 and kin, little-endian.
    for magic in [
        0xbed0_bed0u32,
        0xbed2_bed2,
        0xbed3_bed3,
        0xbad1_bad1,
        0xbad2_bad2,
    ] {
        let mut vmss = magic.to_le_bytes().to_vec();
        vmss.extend_from_slice(&[8, 0, 0, 0, 20, 0, 0, 0]);
        refused(&vmss, Unsupported, "VMware");
    }
    refused(b"\x7fVirtualBox SavedState V2.0\n", NotADump, "VirtualBox");
    refused(b"Xen saved domain, xl format\n \0 \r", NotADump, "Xen");
    refused(b"LibvirtQemudSave\x02\0\0\0", NotADump, "libvirt");
    refused(b"QFI\xfb\0\0\0\x03", NotADump, "qcow2");
    // What stands further in, as in a partition: a swap space's signature ends its first page.
    let at = |offset: usize, signature: &[u8]| {
        let mut bytes = vec![0; 3 * 4096];
        put(&mut bytes, offset, signature);
        bytes
    };
    refused(&at(4086, b"S1SUSPEND"), Unsupported, "hibernated Linux");
    refused(&at(4086, b"SWAPSPACE2"), NotADump, "swap space");
    refused(&at(1024 + 56, &[0x53, 0xef]), NotADump, "ext4 file system");
    refused(&at(257, b"ustar\0"), NotADump, "tar archive");
    // The same inside a flattened stream.
    refused(
        &flatten(b"just some text, flattened", 10, false),
        NotADump,
        "a text file",
    );
}

#[test]
fn elf_files_that_are_not_the_memory_of_an_x86_64_machine() {
    use Kind::{Damaged, NotADump, Unsupported};
    let (machine, _) = machine();
    let edited = |at: usize, bytes: &[u8]| {
        let mut elf = machine.elf();
        put(&mut elf, at, bytes);
        elf
    };
    refused(&edited(4, &[1]), Unsupported, "32-bit");
    refused(
        &edited(18, &183u16.to_le_bytes()),
        Unsupported,
        "another architecture (AARCH64",
    );
    let mut s390 = edited(18, &22u16.to_be_bytes());
    s390[5] = 2;
    refused(&s390, Unsupported, "big-endian ELF file (S390");
    refused(&edited(16, &3u16.to_le_bytes()), NotADump, "not a core");
    refused(&edited(54, &32u16.to_le_bytes()), Damaged, "e_phentsize");
    refused(
        &edited(56, &60_000u16.to_le_bytes()),
        Damaged,
        "does not fit into the file",
    );
    refused(&machine.elf()[..50], Damaged, "cut short");
    refused(
        &edited(56, &0u16.to_le_bytes()),
        Damaged,
        "no memory in this dump",
    );

    // Notes decide between the cores: "CORE" with an auxiliary vector (6), a task_struct (4), "Xen".
    let note = |name: &[u8], kind: u32| {
        let mut note = Vec::new();
        for word in [name.len() as u32, 4, kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        note.extend_from_slice(name);
        note.resize(note.len().next_multiple_of(4) + 4, 0);
        note
    };
    let memory = || {
        [Segment {
            addr: 0x1000,
            memory: 4,
            data: vec![1; 4],
        }]
    };
    refused(
        &elf_file(&note(b"CORE\0", 6), &memory()),
        NotADump,
        "one process",
    );
    refused(
        &elf_file(&note(b"Xen\0", 0x100_0001), &memory()),
        Unsupported,
        "Xen",
    );
    refused(
        &elf_file(&note(b"VBCORE\0", 0xb00), &memory()),
        Unsupported,
        "VirtualBox",
    );
    refused(&elf_file(&[], &[]), Damaged, "no memory in this dump");
    let beyond = [Segment {
        addr: 1 << 53,
        memory: 4,
        data: vec![1; 4],
    }];
    refused(&elf_file(&[], &beyond), Damaged, "beyond the 52 bits");
}

#[test]
fn kdumps_that_are_not_read() {
    use Kind::{Damaged, Unsupported};
    let (machine, mut noise) = machine();
    let mut kdump = |options: Kdump| machine.kdump(options, &mut noise);
    let default = Kdump::default;
    refused(
        &kdump(Kdump {
            machine: "aarch64",
            ..default()
        }),
        Unsupported,
        "another architecture (aarch64)",
    );
    refused(
        &kdump(Kdump {
            version: 7,
            ..default()
        }),
        Unsupported,
        "header version 7",
    );
    refused(
        &kdump(Kdump {
            version: 0,
            ..default()
        }),
        Damaged,
        "header_version",
    );
    refused(
        &kdump(Kdump {
            block_size: 65536,
            ..default()
        }),
        Damaged,
        "block_size",
    );
    let whole = kdump(default());
    refused(&whole[..300], Damaged, "disk_dump_header");
    refused(&whole[..4100], Damaged, "kdump_sub_header");
    refused(&whole[..3 * 4096 + 100], Damaged, "bitmap");
    let mut few = whole.clone();
    put(&mut few, 436, &1u32.to_le_bytes());
    refused(&few, Damaged, "bitmap_blocks");
    let mut huge = whole.clone();
    put(&mut huge, 4096 + 96, &(1u64 << 50).to_le_bytes());
    refused(&huge, Damaged, "max_mapnr");
    // A signature that nobody writes, of a flattened stream's type.
    let mut other = flatten(&whole, 4096, false);
    put(&mut other, 24, &2u64.to_be_bytes());
    refused(&other, Unsupported, "version 2");
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let error = Dump::open("/proc/self/task".as_ref()).unwrap_err();
    assert!(error.to_string().contains("a directory"), "{error}");
    let error = Dump::open("/nonexistent/vmcore".as_ref()).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }));
}

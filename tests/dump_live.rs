//! /proc/kcore: the memory of a kernel that lives can be looked at, and nothing in it be brought back.

mod synth;

use std::os::unix::fs::FileExt;
use std::process::Command;

use synth::{PAGE, Segment, TempFile, elf_file, note, put};
use vmrestore::dump::{Dump, Missing, OpenError, PageState, PhysicalMemory};

/// As Linux fs/proc/kcore.c writes it: notes of the reading process, and segments of which those
/// that belong to no physical address have -1 there. The file ends long before the last of them.
fn kcore(old: bool) -> Vec<u8> {
    let mut notes = Vec::new();
    note(&mut notes, b"CORE\0", 1, &[0; 336]);
    note(&mut notes, b"CORE\0", 3, &[0; 136]);
    note(&mut notes, b"CORE\0", 4, &[0; 9000]);
    note(&mut notes, b"VMCOREINFO\0", 0, b"OSRELEASE=6.1.0\n");
    let segment = |addr, fill: u8, pages: usize| Segment {
        addr,
        memory: (pages * PAGE) as u64,
        data: vec![fill; pages * PAGE],
    };
    let mut elf = elf_file(
        &notes,
        &[
            segment(u64::MAX, 1, 3),  // vmalloc
            segment(0x20_0000, 2, 2), // text
            segment(if old { 0 } else { 0x1000 }, 3, 4),
            segment(if old { 0 } else { 0x10_0000 }, 4, 600),
        ],
    );
    // vmalloc has 32 TiB, and stands where the file does not reach. Program header 1, p_filesz and
    // p_memsz at 32 and 40; p_offset at 8.
    let header = 64 + 56;
    put(&mut elf, header + 8, &(0x4000_0000_0000u64).to_le_bytes());
    put(&mut elf, header + 32, &(32u64 << 40).to_le_bytes());
    put(&mut elf, header + 40, &(32u64 << 40).to_le_bytes());
    elf
}

#[test]
fn physical_memory_of_a_live_kernel() {
    let bytes = kcore(false);
    let file = TempFile::new(&bytes);
    let dump = Dump::open(file.path()).unwrap();
    assert!(dump.is_live());
    assert_eq!(dump.incomplete(), None);
    assert_eq!(dump.vmcoreinfo(), Some("OSRELEASE=6.1.0\n"));
    let byte = |addr| {
        let mut byte = [0];
        dump.read_physical(addr, &mut byte).map(|()| byte[0])
    };
    assert_eq!(byte(0x1000).unwrap(), 3);
    assert_eq!(byte(0x10_0fff).unwrap(), 4);
    assert_eq!(byte(0).unwrap_err().missing(), Some(Missing::NotRam));
    assert_eq!(dump.page_state(0x4fff), PageState::Missing(Missing::NotRam));
    // The text stands in the file twice.
    assert!([2, 4].contains(&byte(0x20_0000).unwrap()));
    assert_eq!(dump.max_pfn(), 0x100 + 600);

    // What is read is what stands there now, for large reads and small ones.
    let place = bytes.len() as u64 - 600 * PAGE as u64;
    let memory = std::fs::OpenOptions::new().write(true).open(file.path());
    memory.unwrap().write_all_at(&[9; 4096], place).unwrap();
    assert_eq!(byte(0x10_0fff).unwrap(), 9);
    let mut page = [0; PAGE];
    dump.read_physical(0x10_0000, &mut page).unwrap();
    assert_eq!(page, [9; PAGE]);
}

#[test]
fn nothing_alive_is_brought_back() {
    let file = TempFile::new(&kcore(false));
    let path = file.path().to_str().unwrap();
    for arguments in [
        &["guests", path][..],
        &["process", path, "pid:1"],
        &["extract", path, "pid:1", "-o", "/nonexistent/out"],
        &["guests", path, "--force"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_vmrestore"))
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{arguments:?}: {stderr}");
        assert!(stderr.contains("are alive"), "{stderr}");
    }
}

#[test]
fn kernels_that_give_no_physical_addresses_are_refused() {
    let file = TempFile::new(&kcore(true));
    let error = Dump::open(file.path()).unwrap_err();
    assert!(matches!(error, OpenError::Unsupported { .. }));
    assert!(error.to_string().contains("older than 4.11"), "{error}");
}

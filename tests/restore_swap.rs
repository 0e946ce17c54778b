//! Swapped pages read from a swap area of this machine, on a loop device: its slots in their extents,
//! and what is refused. The area is never turned on.
//!
//! What the new boot has done to an area is overridden here: what this machine's log remembers is not
//! the test's to say.
//!
//! Needs root and loop devices.

#[path = "common/empty.rs"]
mod empty;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use vmrestore::dataset::{
    Blob, BlockDevice, Dataset, FidelityLevel, ObjectId, PageContent, PageRun, PageSource,
    PageSourceError, SharedMemory, SwapArea, SwapExtent,
};
use vmrestore::restore::swap;

const PAGE: u64 = 4096;
const SLOTS: u64 = 1024;

/// A file on a loop device.
struct Loop {
    file: PathBuf,
    device: String,
}

impl Loop {
    fn new(name: &str) -> Option<Self> {
        let file = std::env::temp_dir().join(format!("vmrestore-{name}-{}", std::process::id()));
        fs::File::create(&file)
            .and_then(|f| f.set_len(SLOTS * PAGE))
            .expect("a file");
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&file)
            .output();
        match output {
            Ok(output) if output.status.success() => Some(Self {
                file,
                device: String::from_utf8_lossy(&output.stdout).trim().into(),
            }),
            other => {
                let _ = fs::remove_file(&file);
                eprintln!("SKIPPED: no loop device (root?): {other:?}");
                None
            }
        }
    }

    /// Writes a page past the page cache's knowledge of the device: by the device itself.
    fn write(&self, page: u64, bytes: &[u8]) {
        let device = fs::File::options().write(true).open(&self.device);
        let device = device.expect("the device");
        device.write_all_at(bytes, page * PAGE).expect("written");
        device.sync_all().expect("synced");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
        let _ = fs::remove_file(&self.file);
    }
}

/// What mkswap writes. Linux include/linux/swap.h.
fn header(uuid: u8) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    page[1024] = 1;
    page[1028..1032].copy_from_slice(&(SLOTS as u32 - 1).to_le_bytes());
    page[1036..1052].fill(uuid);
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    page
}

fn content(place: u64) -> Vec<u8> {
    (0..PAGE).map(|i| (place * 31 + i * i / 7) as u8).collect()
}

/// The dump: page frame N holds `content(N)`.
struct Frames;

impl PageSource for Frames {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        let PageContent::Frame(frame) = run.content else {
            panic!("{run:?} is not the dump's")
        };
        let pages: Vec<u8> = (first..first + count)
            .flat_map(|i| content(frame + i))
            .collect();
        out.copy_from_slice(&pages);
        Ok(())
    }
}

fn run(start: u64, count: u64, content: PageContent) -> PageRun {
    PageRun {
        start,
        count,
        content,
    }
}

fn dataset(area: SwapArea, pages: Vec<PageRun>) -> Dataset {
    Dataset {
        shared_memory: vec![SharedMemory {
            id: ObjectId(1),
            name: String::new(),
            memfd: false,
            size: 1 << 30,
            seals: 0,
            pages,
            huge_page: 0,
        }],
        swap: vec![area],
        ..empty::dataset("swap")
    }
}

/// Slots 0 to 599 are at their own pages of the device, the others from its page 700 on.
fn area() -> SwapArea {
    let extent = |slot, count, place| SwapExtent { slot, count, place };
    SwapArea {
        number: 3,
        path: "/dev/then".into(),
        slots: SLOTS,
        device: Some(BlockDevice {
            name: "then".into(),
            size: SLOTS * PAGE,
            ..BlockDevice::default()
        }),
        file: None,
        extents: vec![extent(0, 600, 0), extent(600, 300, 700)],
        header: Some(Blob(header(0x5a))),
        witnesses: vec![run(40 * PAGE, 1, PageContent::Frame(40))],
        zram: None,
        trouble: None,
    }
}

fn why_not(dataset: &Dataset) -> String {
    match swap::open(dataset, &Frames, true) {
        Ok(_) => "opened".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn slots_are_read_where_they_are_and_what_is_another_area_is_refused() {
    let Some(disk) = Loop::new("swap") else {
        return;
    };
    disk.write(0, &header(0x5a));
    for place in 1..SLOTS {
        disk.write(place, &content(place));
    }
    let swapped = PageContent::Swap {
        area: 3,
        offset: 10,
    };
    let pages = vec![
        run(0, 800, swapped),
        run(900 * PAGE, 2, PageContent::Frame(5)),
    ];
    let mut told = dataset(area(), pages.clone());
    let opened = swap::open(&told, &Frames, true).expect("opened");
    let mut out = vec![0; 800 * PAGE as usize];
    opened
        .read_pages(&pages[0], 0, 800, &mut out)
        .expect("read");
    for (slot, page) in (10..).zip(out.chunks(PAGE as usize)) {
        let place = if slot < 600 { slot } else { slot + 100 };
        assert!(page == content(place), "slot {slot}");
    }
    // A part of a run, across both extents; the others come from the dump.
    let part = &mut out[..3 * PAGE as usize];
    opened.read_pages(&pages[0], 589, 3, part).expect("read");
    assert!(part == [content(599), content(700), content(701)].concat());
    opened
        .read_pages(&pages[1], 1, 1, &mut part[..PAGE as usize])
        .expect("read");
    assert!(part[..PAGE as usize] == content(6));
    let notes = opened.notes();
    assert!(notes[0].what.starts_with("800 pages"), "{notes:?}");
    drop(opened);

    // No such slots.
    let beyond = PageContent::Swap {
        area: 3,
        offset: 890,
    };
    let opened = swap::open(&told, &Frames, true).expect("opened");
    let failure = opened.read_pages(&run(0, 20, beyond), 0, 20, &mut out[..20 * PAGE as usize]);
    assert!(
        failure
            .expect_err("beyond")
            .to_string()
            .contains("no slot 900")
    );
    drop(opened);

    // A slot that the dump knows is another: a doubt, which force overrides and the report tells.
    disk.write(40, &content(41));
    let opened = swap::open(&told, &Frames, true).expect("overridden");
    assert_eq!(opened.notes()[0].level, FidelityLevel::Lost);
    drop(opened);
    match swap::open(&told, &Frames, false) {
        Ok(_) => panic!("opened"),
        Err(e) => assert!(e.to_string().contains("/dev/then"), "{e}"),
    }

    // Certain refusals: force or not.
    told.swap[0].trouble = Some("it was on a tape".into());
    assert!(why_not(&told).contains("it was on a tape"));
    told.swap[0] = area();
    told.swap[0].slots = SLOTS - 1;
    told.swap[0].header = None;
    assert!(
        why_not(&told).contains("nothing by which to know it"),
        "no UUID"
    );
    told.swap.clear();
    assert!(why_not(&told).contains("does not say where"));
    told.swap.push(area());
    disk.write(0, &header(0x5b));
    assert!(
        why_not(&told).contains("nothing by which to know it"),
        "mkswap"
    );
    disk.write(0, &vec![0; PAGE as usize]);
    assert!(why_not(&told).contains("800 pages"));
}

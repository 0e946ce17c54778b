//! Synthetic dumps of pages as hosts have them: per codec the codec alone on one core, the reader on
//! all cores, and single random pages; ELF beside plain reads. `cargo bench --bench pages`.
//!
//! `scripts/bench` measures a real dump, with the peers beside it.

#[allow(dead_code)]
#[path = "../src/dump/codec/mod.rs"]
mod codec;
#[path = "measure/pages_mix.rs"]
mod pages_mix;
#[path = "../tests/synth/mod.rs"]
mod synth;

use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use codec::{Codec, Decoder};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pages_mix::{Noise, PAGE, Text};
use synth::{Kdump, Machine, Slot, TempFile};
use vmrestore::dump::{Dump, PhysicalMemory};

/// 64 MiB of memory: more than the reader's cache holds.
const PAGES: usize = 16 << 10;

/// Of ten pages four are text, three a kernel's, one noise and two zeros.
fn machine() -> Machine {
    let text = Text::of_this_project();
    let mut noise = Noise(7);
    let slots = (0..PAGES)
        .map(|_| {
            let page = match noise.below(10) {
                0..=3 => text.page(&mut noise),
                4..=6 => pages_mix::kernel_like(&mut noise),
                7 => pages_mix::random(&mut noise),
                _ => [0; PAGE],
            };
            Slot::Data(Box::new(page))
        })
        .collect();
    Machine {
        slots,
        vmcoreinfo: None,
        cpus: Vec::new(),
        qemu: false,
    }
}

type Store = fn(&[u8; PAGE], &mut synth::Noise) -> (Vec<u8>, u32);

fn store_lzo(page: &[u8; PAGE], noise: &mut synth::Noise) -> (Vec<u8>, u32) {
    // An encoder that finds matches, as the tests' plain one does not.
    match lzokay::compress::compress(page) {
        Ok(bytes) if bytes.len() < PAGE => (bytes, 2),
        _ => synth::store_raw(page, noise),
    }
}

fn formats(c: &mut Criterion) {
    let machine = machine();
    let stores: [(&str, u32, Store); 5] = [
        ("raw", 0, synth::store_raw),
        ("zlib", 1, synth::store_zlib),
        ("lzo", 2, store_lzo),
        ("snappy", 4, synth::store_snappy),
        ("zstd", 0x20, synth::store_zstd),
    ];
    for (name, status, store) in stores {
        codec_alone(c, name, &machine, store);
        let options = Kdump {
            status,
            store,
            ..Kdump::default()
        };
        let file = TempFile::new(&machine.kdump(options, &mut synth::Noise(1)));
        reader(c, name, &file);
    }
    let file = TempFile::new(&machine.elf());
    reader(c, "elf", &file);
    let plain = std::fs::File::open(file.path()).expect("the dump");
    let mut buffer = vec![0; 1 << 20];
    let mut group = c.benchmark_group("elf");
    group.throughput(Throughput::Bytes((PAGES * PAGE) as u64));
    group.bench_function("pread", |b| {
        b.iter(|| {
            for at in (0..PAGES * PAGE).step_by(1 << 20) {
                plain.read_exact_at(&mut buffer, at as u64).expect("bytes");
            }
        });
    });
    group.finish();
}

fn codec_alone(c: &mut Criterion, name: &str, machine: &Machine, store: Store) {
    let mut noise = synth::Noise(1);
    let stored: Vec<(Vec<u8>, Codec)> = machine
        .slots
        .iter()
        .filter_map(|slot| match slot {
            Slot::Data(page) => Some(store(page, &mut noise)),
            _ => None,
        })
        .filter_map(|(bytes, flags)| Some((bytes, Codec::from_flags(flags)?)))
        .collect();
    let mut decoder = Decoder::new();
    let mut page = [0; PAGE];
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes((PAGES * PAGE) as u64));
    group.bench_function("codec alone, one core", |b| {
        b.iter(|| {
            for (bytes, codec) in &stored {
                decoder.decode(*codec, bytes, &mut page).expect("a page");
                black_box(&mut page);
            }
        });
    });
    group.finish();
}

fn reader(c: &mut Criterion, name: &str, file: &TempFile) {
    let dump = Dump::open(file.path()).expect("a dump");
    let pfns: Vec<u64> = (0..PAGES as u64).collect();
    let mut out = vec![0; 1024 * PAGE];
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes((PAGES * PAGE) as u64));
    group.bench_function("bulk, all cores", |b| {
        b.iter(|| {
            for call in pfns.chunks(1024) {
                assert!(dump.read_pages(call, &mut out).is_empty());
            }
        });
    });
    group.throughput(Throughput::Elements(1));
    let mut noise = Noise(3);
    let mut page = [0; PAGE];
    group.bench_function("random 4 KiB", |b| {
        b.iter_batched(
            || noise.below(PAGES) as u64 * PAGE as u64,
            |addr| dump.read_physical(addr, &mut page),
            BatchSize::SmallInput,
        );
    });
    let mut word = [0; 8];
    group.bench_function("8 bytes, hot", |b| {
        b.iter_batched(
            || noise.below(2048) as u64 * PAGE as u64 + 8 * noise.below(512) as u64,
            |addr| dump.read_physical(addr, &mut word),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(10);
    targets = formats
}
criterion_main!(benches);

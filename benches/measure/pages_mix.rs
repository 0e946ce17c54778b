//! Pages like those that dumps hold: text, a kernel's structures, noise, zeros.
#![allow(dead_code)]

use std::path::Path;

pub const PAGE: usize = 4096;

/// Deterministic noise (splitmix64).
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Real text, of which each page takes another piece: the sources of this project.
pub struct Text(Vec<u8>);

impl Text {
    pub fn of_this_project() -> Text {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut text = Vec::new();
        for dir in ["src", "tests", "docs"] {
            add_files(&root.join(dir), &mut text);
        }
        Text(text)
    }

    pub fn page(&self, noise: &mut Noise) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let at = noise.below(self.0.len() - PAGE);
        page.copy_from_slice(&self.0[at..at + PAGE]);
        page
    }
}

fn add_files(dir: &Path, text: &mut Vec<u8>) {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .expect("the project's sources")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            add_files(&path, text);
        } else if path
            .extension()
            .is_some_and(|ext| ext == "rs" || ext == "md")
        {
            text.extend(std::fs::read(path).expect("a source file"));
        }
    }
}

/// Structures of a kernel: pointers into few places, small numbers, flags, many zeros.
pub fn kernel_like(noise: &mut Noise) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let heap = 0xffff_8881_0000_0000 + (noise.below(1 << 16) as u64) * 4096;
    for word in page.chunks_exact_mut(8) {
        let value = match noise.below(16) {
            0..=7 => 0,
            8..=10 => heap + noise.below(512) as u64 * 8,
            11 => 0xffff_ffff_8100_0000 + noise.below(1 << 12) as u64 * 16,
            12..=14 => noise.below(200) as u64,
            _ => noise.next() & 0xffff_ffff,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    page
}

pub fn random(noise: &mut Noise) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    for word in page.chunks_exact_mut(8) {
        word.copy_from_slice(&noise.next().to_le_bytes());
    }
    page
}

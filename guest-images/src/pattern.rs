//! Contents that follow from a nonce alone, so that any byte out of place is
//! seen.

/// SplitMix64's output function at position `index` of the stream `seed`.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014.
#[must_use]
pub fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Words of 8 bytes in one run of equal words. Equal words keep the dump small
/// (zlib shrinks them eightfold), the position still decides each run's value.
pub const RUN: usize = 8;

/// A pattern of memory that is written once and verified again and again.
pub struct Pattern {
    nonce: u64,
    words: Vec<u64>,
}

impl Pattern {
    /// Fills `bytes` bytes (a multiple of 64) from `nonce`.
    #[must_use]
    pub fn new(nonce: u64, bytes: usize) -> Self {
        let words = (0..bytes / 8)
            .map(|i| mix(nonce, (i / RUN) as u64))
            .collect();
        Self { nonce, words }
    }

    /// Reads all of it: the sum of all words, and how many differ from what
    /// the nonce says.
    ///
    /// Volatile loads keep the compiler from using vector registers: those of
    /// a vCPU that ran at the panic are stale in any dump, and this loop must
    /// find damage in memory only.
    #[must_use]
    pub fn verify(&self) -> (u64, u64) {
        let (mut sum, mut bad) = (0u64, 0u64);
        for (i, run) in self.words.chunks_exact(RUN).enumerate() {
            let want = mix(self.nonce, i as u64);
            for word in run {
                // SAFETY: `word` is a valid reference for the read.
                let got = unsafe { std::ptr::read_volatile(word) };
                sum = sum.wrapping_add(got);
                bad += u64::from(got != want);
            }
        }
        (sum, bad)
    }
}

/// Pages rewritten in turn, one for each line: a page from an older moment
/// shows itself, which a pattern that never changes would not do.
pub struct LivePages {
    seed: u64,
    pages: Vec<[u64; 512]>,
}

impl LivePages {
    /// Pages in the ring; the judge knows this number too.
    pub const COUNT: usize = 256;
    /// Keeps this stream apart from the pattern's.
    pub const SALT: u64 = 0x6c69_7665_7061_6765;

    /// All pages zero.
    #[must_use]
    pub fn new(nonce: u64) -> Self {
        Self {
            seed: nonce ^ Self::SALT,
            pages: vec![[0; 512]; Self::COUNT],
        }
    }

    /// Writes line `n`'s page, then verifies the whole ring: the sum of the
    /// first words, and how many words are wrong.
    pub fn write_and_verify(&mut self, n: u64) -> (u64, u64) {
        let count = Self::COUNT as u64;
        let value = mix(self.seed, n);
        for word in &mut self.pages[(n % count) as usize] {
            // SAFETY: `word` is a valid reference for the write; volatile for
            // the reason given at `Pattern::verify`.
            unsafe { std::ptr::write_volatile(word, value) };
        }
        let (mut sum, mut bad) = (0u64, 0u64);
        for (slot, page) in self.pages.iter().enumerate() {
            // The newest m <= n with m % count == slot; 0 if none yet.
            let back = (n % count + count - slot as u64) % count;
            let want = match n.checked_sub(back) {
                Some(m) if m > 0 => mix(self.seed, m),
                _ => 0,
            };
            sum = sum.wrapping_add(page[0]);
            for word in page {
                // SAFETY: a valid reference for the read.
                let got = unsafe { std::ptr::read_volatile(word) };
                bad += u64::from(got != want);
            }
        }
        (sum, bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_agrees_with_the_published_stream() {
        // First outputs of SplitMix64 seeded with 1234567 (Vigna's reference
        // implementation): the generator adds the increment before mixing.
        assert_eq!(mix(1_234_567, 1), 6_457_827_717_110_365_317);
        assert_eq!(mix(1_234_567, 2), 3_203_168_211_198_807_973);
    }

    #[test]
    fn one_flipped_bit_is_seen() {
        let mut pattern = Pattern::new(7, 4096);
        let (sum, bad) = pattern.verify();
        assert_eq!(bad, 0);
        pattern.words[100] ^= 1 << 40;
        let (other, bad) = pattern.verify();
        assert_eq!(bad, 1);
        assert_ne!(sum, other);
    }

    #[test]
    fn a_page_from_an_older_moment_is_seen() {
        let mut live = LivePages::new(7);
        for n in 1..600 {
            assert_eq!(live.write_and_verify(n).1, 0, "at {n}");
        }
        let older = live.pages[5];
        for n in 600..900 {
            assert_eq!(live.write_and_verify(n).1, 0, "at {n}");
        }
        live.pages[5] = older;
        assert_eq!(live.write_and_verify(900).1, 512);
    }
}

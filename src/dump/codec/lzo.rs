//! LZO1X, for one page.
//!
//! A page of LZO is short literals and short matches, so what a decoder does besides copying them
//! decides its speed. This one works between two buffers of its own with room behind the page: it
//! checks lengths once for each instruction, then copies in whole chunks, beyond the end where that
//! is shorter than counting. On text-like pages that is twice as fast as the crates that do without
//! `unsafe` too, and as liblzo2 (docs/performance.md).
//!
//! The format: Linux Documentation/staging/lzo.rst (there is no other description of it). Version 1
//! of it, which the kernel calls lzo-rle, is read where the kernel itself has compressed.

use std::fmt;

const PAGE: usize = 4096;
/// Room behind either buffer: what a copy in chunks may go too far.
const SLACK: usize = 64;
type Buffer = [u8; PAGE + SLACK];

/// What is wrong with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LzoError {
    /// It ends in the middle of an instruction.
    Input,
    /// It goes on behind its end mark.
    Rest,
    /// It holds more than a page.
    Output,
    /// It refers to bytes before the page.
    Distance,
}

impl fmt::Display for LzoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LzoError::Input => "the stream has no end mark (cut short?)",
            LzoError::Rest => "the stream goes on behind its end mark",
            LzoError::Output => "more than one page",
            LzoError::Distance => "a match reaches back before the page",
        })
    }
}

/// The two buffers; to be kept from page to page.
pub(super) struct Lzo {
    input: Box<Buffer>,
    output: Box<Buffer>,
}

impl Lzo {
    pub fn new() -> Lzo {
        Lzo {
            input: Box::new([0; PAGE + SLACK]),
            output: Box::new([0; PAGE + SLACK]),
        }
    }

    /// Decodes `stored`, and returns what came out: at most a page.
    pub fn decode(&mut self, stored: &[u8]) -> Result<&[u8], LzoError> {
        let end = self.take(stored)?;
        let len = run::<false>(&self.input, 0, end, &mut self.output)?;
        self.output.get(..len).ok_or(LzoError::Output)
    }

    /// The same of a stream that Linux's `lzo` or `lzo-rle` made: it may begin with its version, and
    /// tell of runs of zeros.
    pub fn decode_kernels(&mut self, stored: &[u8]) -> Result<&[u8], LzoError> {
        let end = self.take(stored)?;
        let len = match stored {
            [17, 0, _, _, _, ..] => run::<false>(&self.input, 2, end, &mut self.output)?,
            [17, _, _, _, _, ..] => run::<true>(&self.input, 2, end, &mut self.output)?,
            _ => run::<false>(&self.input, 0, end, &mut self.output)?,
        };
        self.output.get(..len).ok_or(LzoError::Output)
    }

    fn take(&mut self, stored: &[u8]) -> Result<usize, LzoError> {
        let end = stored.len();
        if end > PAGE {
            return Err(LzoError::Output);
        }
        self.input[..end].copy_from_slice(stored);
        self.input[end..end + SLACK].fill(0);
        Ok(end)
    }
}

/// What came before an instruction, which says what its lowest codes mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// The begin, or a match without literals behind it.
    Match,
    /// A match with one to three literals behind it.
    Literals,
    /// A run of four literals or more.
    Run,
}

/// Each copy into `output` begins inside the page, and ends in the slack at the latest.
/// With `ZEROS`, of version 1.
fn run<const ZEROS: bool>(
    input: &Buffer,
    start: usize,
    end: usize,
    output: &mut Buffer,
) -> Result<usize, LzoError> {
    let (mut at, mut to) = (start, 0);
    let mut before = Before::Match;
    if end <= start {
        return Err(LzoError::Input);
    }
    if input[start] > 17 {
        at += 1;
        let count = usize::from(input[start]) - 17;
        copy_literals(input, &mut at, end, output, &mut to, count)?;
        before = match count {
            1..=3 => Before::Literals,
            _ => Before::Run,
        };
    }
    loop {
        // Here `at < end`. An instruction has at most three bytes besides a long length, so reading
        // it stays in the slack; that it was all there is checked behind the match.
        let code = usize::from(input[at]);
        at += 1;
        let (len, distance, literals) = match code {
            64.. => {
                let high = usize::from(input[at]);
                at += 1;
                let distance = (high << 3) + (code >> 2 & 7) + 1;
                ((code >> 5) + 1, distance, code & 3)
            }
            32..64 => {
                let len = match code & 31 {
                    0 => 31 + long_length(input, &mut at, end)?,
                    len => len,
                };
                let low = usize::from(u16::from_le_bytes(chunk(input, at)));
                at += 2;
                (len + 2, (low >> 2) + 1, low & 3)
            }
            16..32 => {
                // Distances from 16 KiB on, which no page has, and the end mark; in version 1 a run
                // of zeros, of 4 at least, has the largest of these distances.
                let low = u16::from_le_bytes(chunk(input, at));
                at += 2;
                if ZEROS && code & 0xf8 == 0x18 && low >= 0xfffc {
                    let count = (usize::from(input[at]) << 3 | code & 7) + 4;
                    at += 1;
                    if to + count > PAGE {
                        return Err(LzoError::Output);
                    }
                    output[to..to + count].fill(0);
                    to += count;
                    let literals = usize::from(low & 3);
                    before = few_literals(input, &mut at, end, output, &mut to, literals)?;
                    continue;
                }
                return match (code, low) {
                    (17, 0..4) if at == end => Ok(to),
                    (17, 0..4) if at < end => Err(LzoError::Rest),
                    _ if at > end => Err(LzoError::Input),
                    _ => Err(LzoError::Distance),
                };
            }
            _ if before == Before::Match => {
                let count = match code {
                    0 => 15 + long_length(input, &mut at, end)?,
                    count => count,
                };
                copy_literals(input, &mut at, end, output, &mut to, count + 3)?;
                before = Before::Run;
                continue;
            }
            _ => {
                let distance = (usize::from(input[at]) << 2) + (code >> 2);
                at += 1;
                match before {
                    Before::Run => (3, distance + 2049, code & 3),
                    _ => (2, distance + 1, code & 3),
                }
            }
        };
        copy_match(output, &mut to, len, distance)?;
        before = few_literals(input, &mut at, end, output, &mut to, literals)?;
    }
}

/// The up to three literals behind a match.
#[inline(always)]
fn few_literals(
    input: &Buffer,
    at: &mut usize,
    end: usize,
    output: &mut Buffer,
    to: &mut usize,
    literals: usize,
) -> Result<Before, LzoError> {
    // An end mark follows at the least.
    if *at + literals >= end {
        return Err(LzoError::Input);
    }
    output[*to..*to + 4].copy_from_slice(&chunk::<4>(input, *at));
    *at += literals;
    *to += literals;
    Ok(match literals {
        0 => Before::Match,
        _ => Before::Literals,
    })
}

#[inline(always)]
fn copy_match(
    output: &mut Buffer,
    to: &mut usize,
    len: usize,
    distance: usize,
) -> Result<(), LzoError> {
    let start = to.checked_sub(distance).ok_or(LzoError::Distance)?;
    let end = *to + len;
    if end > PAGE {
        return Err(LzoError::Output);
    }
    match distance {
        16.. => copy_chunks::<16>(output, start, *to, len),
        8.. => copy_chunks::<8>(output, start, *to, len),
        1 => {
            let byte = output[start];
            output[*to..end].fill(byte);
        }
        _ => {
            for i in 0..len {
                output[*to + i] = output[start + i];
            }
        }
    }
    *to = end;
    Ok(())
}

/// `N` bytes at a time, which may be no more than the distance: a chunk must not be read before the
/// one that it repeats is written.
#[inline(always)]
fn copy_chunks<const N: usize>(output: &mut Buffer, start: usize, to: usize, len: usize) {
    let mut done = 0;
    loop {
        let bytes: [u8; N] = chunk(output, start + done);
        output[to + done..to + done + N].copy_from_slice(&bytes);
        done += N;
        if done >= len {
            break;
        }
    }
}

#[inline(always)]
fn copy_literals(
    input: &Buffer,
    at: &mut usize,
    end: usize,
    output: &mut Buffer,
    to: &mut usize,
    count: usize,
) -> Result<(), LzoError> {
    const CHUNK: usize = 32;
    if *at + count >= end {
        return Err(LzoError::Input);
    }
    if *to + count > PAGE {
        return Err(LzoError::Output);
    }
    if count <= CHUNK {
        output[*to..*to + CHUNK].copy_from_slice(&chunk::<CHUNK>(input, *at));
    } else {
        output[*to..*to + count].copy_from_slice(&input[*at..*at + count]);
    }
    *at += count;
    *to += count;
    Ok(())
}

/// The rest of a length that does not fit its instruction: 255 for each zero, then the last byte.
#[cold]
fn long_length(input: &Buffer, at: &mut usize, end: usize) -> Result<usize, LzoError> {
    let mut len = 0;
    while *at < end {
        let byte = usize::from(input[*at]);
        *at += 1;
        if byte != 0 {
            return Ok(len + byte);
        }
        len += 255;
        if len > PAGE {
            return Err(LzoError::Output);
        }
    }
    Err(LzoError::Input)
}

#[inline(always)]
fn chunk<const N: usize>(bytes: &Buffer, at: usize) -> [u8; N] {
    let mut chunk = [0; N];
    chunk.copy_from_slice(&bytes[at..at + N]);
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;

    /// splitmix64
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        fn below(&mut self, n: usize) -> usize {
            (self.next() % n as u64) as usize
        }

        /// Runs of noise, of one byte, and of what stood before, near and far.
        fn bytes(&mut self, len: usize) -> Vec<u8> {
            let mut out = Vec::new();
            while out.len() < len {
                let most = [4, 20, 300, 3000][self.below(4)];
                let count = 1 + self.below(most);
                match self.below(4) {
                    0 => out.extend((0..count).map(|_| self.next() as u8)),
                    1 => out.extend(std::iter::repeat_n(self.next() as u8, count)),
                    _ if out.is_empty() => {}
                    near => {
                        let most = if near == 2 { 24 } else { out.len() };
                        let distance = 1 + self.below(most.min(out.len()));
                        for _ in 0..count {
                            out.push(out[out.len() - distance]);
                        }
                    }
                }
            }
            out.truncate(len);
            out
        }
    }

    /// Each way to write one down: the other decoder's result.
    fn reference(stored: &[u8]) -> Result<Vec<u8>, lzokay::Error> {
        let mut page = vec![0; PAGE];
        let len = lzokay::decompress::decompress(stored, &mut page)?;
        page.truncate(len);
        Ok(page)
    }

    #[test]
    fn what_another_encoder_wrote_is_read() {
        let mut noise = Noise(1);
        let mut lzo = Lzo::new();
        for round in 0..600 {
            let len = match round % 3 {
                0 => PAGE,
                1 => 1 + noise.below(40),
                _ => 1 + noise.below(PAGE),
            };
            let bytes = noise.bytes(len);
            let stored = lzokay::compress::compress(&bytes).unwrap();
            if stored.len() <= PAGE {
                assert!(lzo.decode(&stored).unwrap() == bytes, "round {round}");
            }
        }
    }

    /// On damaged streams too it says what the other decoder says: the same bytes or an error.
    #[test]
    fn damaged_streams_are_judged_as_another_decoder_judges_them() {
        let mut noise = Noise(2);
        let mut lzo = Lzo::new();
        let (mut same, mut refused) = (0, 0);
        let mut sound = Vec::new();
        for round in 0..20_000 {
            if round % 50 == 0 {
                let len = [PAGE, 100 + noise.below(3000)][round / 50 % 2];
                sound = lzokay::compress::compress(&noise.bytes(len)).unwrap();
            }
            let mut stored = sound.clone();
            for _ in 0..=noise.below(3) {
                let at = noise.below(stored.len());
                match noise.below(4) {
                    0 => stored[at] = noise.next() as u8,
                    1 => stored[at] ^= 1 << noise.below(8),
                    2 => stored.truncate(at.max(1)),
                    _ => stored[at] = [0, 0x10, 0x11, 0x12, 0x20, 0x40, 0xff][noise.below(7)],
                }
            }
            if stored.len() > PAGE {
                continue;
            }
            match (lzo.decode(&stored), reference(&stored)) {
                (Ok(ours), Ok(theirs)) => {
                    assert!(ours == theirs, "round {round}: {stored:02x?}");
                    same += 1;
                }
                (Err(_), Err(_)) => refused += 1,
                (ours, theirs) => panic!(
                    "round {round}: {:?}, the other {:?}: {stored:02x?}",
                    ours.map(<[u8]>::len),
                    theirs.map(|bytes| bytes.len())
                ),
            }
        }
        assert!(same > 2000 && refused > 2000, "{same} and {refused}");
    }

    /// Written by hand after the description: no encoder of version 1 is to be had here.
    #[test]
    fn runs_of_zeros_of_the_kernels_second_version() {
        let mut lzo = Lzo::new();
        // "ab", 4 + 2 + 8 * 3 zeros with one literal behind, 4 + 7 + 8 * 255 more, the end.
        let stored = [
            17,
            1,
            19,
            b'a',
            b'b',
            0x18 | 2,
            0xfd,
            0xff,
            3,
            b'c',
            0x18 | 7,
            0xfc,
            0xff,
            255,
            17,
            0,
            0,
        ];
        let mut wanted = b"ab".to_vec();
        wanted.resize(2 + 30, 0);
        wanted.push(b'c');
        wanted.resize(33 + 2051, 0);
        assert!(lzo.decode_kernels(&stored).unwrap() == wanted);
        // Not in the first version; nor is the prefix known to others.
        let mut first = stored;
        first[1] = 0;
        assert_eq!(lzo.decode_kernels(&first), Err(LzoError::Distance));
        assert!(lzo.decode(&stored).is_err());
        // Beyond the page; cut anywhere.
        let mut long = vec![17, 1, 18, b'a'];
        for _ in 0..3 {
            long.extend([0x1f, 0xfc, 0xff, 255]);
        }
        long.extend([17, 0, 0]);
        assert_eq!(lzo.decode_kernels(&long), Err(LzoError::Output));
        for len in 0..stored.len() {
            assert!(lzo.decode_kernels(&stored[..len]).is_err(), "{len}");
        }
        // Without a version it is what everybody writes.
        let plain = lzokay::compress::compress(&[7; 4096]).unwrap();
        assert!(lzo.decode_kernels(&plain).unwrap() == [7; 4096]);
    }

    #[test]
    fn noise_never_panics() {
        let mut noise = Noise(3);
        let mut lzo = Lzo::new();
        for _ in 0..50_000 {
            let most = [8, 64, PAGE + 1][noise.below(3)];
            let len = noise.below(most);
            let few = noise.below(2) == 0;
            let stored: Vec<u8> = (0..len)
                .map(|_| noise.next() as u8 & if few { 0x33 } else { 0xff })
                .collect();
            if let Ok(bytes) = lzo.decode(&stored) {
                assert!(bytes.len() <= PAGE);
            }
            let versioned = [&[17, 1], stored.as_slice()].concat();
            if let Ok(bytes) = lzo.decode_kernels(&versioned) {
                assert!(bytes.len() <= PAGE);
            }
        }
    }
}

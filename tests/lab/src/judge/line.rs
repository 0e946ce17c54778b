//! Lines of the form `WORD key=value key=value … crc=XXXXXXXX`.

/// One line, checked against its own checksum.
pub struct Line<'a> {
    /// The first word: what kind of line it is.
    pub kind: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Line<'a> {
    /// Takes a line apart, or says why it cannot be whole.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let (body, crc) = text.rsplit_once(" crc=").ok_or("torn: no checksum")?;
        let found = u32::from_str_radix(crc, 16).map_err(|_| "torn: checksum unreadable")?;
        let want = checksum(body.as_bytes());
        if crc.len() != 8 || found != want {
            return Err(format!("torn: checksum is {crc}, text gives {want:08x}"));
        }
        let mut words = body.split(' ');
        let kind = words.next().unwrap_or_default();
        let fields = words
            .map(|word| word.split_once('=').ok_or(format!("word {word:?}")))
            .collect::<Result<_, _>>()?;
        Ok(Self { kind, fields })
    }

    /// A field's text.
    pub fn get(&self, key: &str) -> Result<&'a str, String> {
        self.fields
            .iter()
            .find_map(|(k, value)| (*k == key).then_some(*value))
            .ok_or_else(|| format!("no {key}="))
    }

    /// A decimal field.
    pub fn number(&self, key: &str) -> Result<u64, String> {
        let text = self.get(key)?;
        text.parse().map_err(|_| format!("{key}={text}"))
    }

    /// A hexadecimal field.
    pub fn hex(&self, key: &str) -> Result<u64, String> {
        let text = self.get(key)?;
        u64::from_str_radix(text, 16).map_err(|_| format!("{key}={text}"))
    }
}

/// FNV-1a of 32 bits: offset basis 2166136261, prime 16777619.
pub fn checksum(bytes: &[u8]) -> u32 {
    let mut hash: u32 = 2_166_136_261;
    for byte in bytes {
        hash ^= u32::from(*byte);
        hash = hash.wrapping_mul(16_777_619);
    }
    hash
}

/// SplitMix64's output for position `index` of the stream `seed`: what all
/// programs of the lab make their contents of.
pub fn splitmix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_mul(11_400_714_819_323_198_485));
    z = (z ^ (z >> 30)).wrapping_mul(13_787_848_793_156_543_929);
    z = (z ^ (z >> 27)).wrapping_mul(10_723_151_780_598_845_931);
    z ^ (z >> 31)
}

/// Where the program's own output begins: firmware and kernel may have said
/// something on the same line before. `None` if it has not begun.
pub fn beginning(bytes: &[u8]) -> Option<usize> {
    let mark = b"BOOT nonce=";
    bytes.windows(mark.len()).position(|window| window == mark)
}

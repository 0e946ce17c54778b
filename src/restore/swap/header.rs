//! The first page of a swap area, which mkswap writes. Linux include/linux/swap.h, `union
//! swap_header`.

use super::Refusal;

const VERSION: usize = 1024;
const LAST_PAGE: usize = 1028;
const UUID: std::ops::Range<usize> = 1036..1052;
const MAGIC: std::ops::Range<usize> = 4086..4096;

const HINT: &str = "what was swapped out to it is overwritten, or may be: nothing brings it back";

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    last_page: u32,
    uuid: [u8; 16],
}

impl Header {
    fn parse(page: &[u8]) -> Result<Self, String> {
        match page.get(MAGIC) {
            Some(b"SWAPSPACE2") => {}
            Some(b"S1SUSPEND\0" | b"S2SUSPEND\0" | b"ULSUSPEND\0" | b"LINHIB0001") => {
                return Err("a host has hibernated to it since".into());
            }
            _ => return Err("it has no swap signature any more: something else is on it".into()),
        }
        let word = |at: usize| {
            let bytes = page.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let version = word(VERSION);
        if version != Some(1) {
            return Err(format!("its header is of version {}", version.unwrap_or(0)));
        }
        let uuid = page.get(UUID).and_then(|bytes| bytes.try_into().ok());
        Ok(Self {
            last_page: word(LAST_PAGE).unwrap_or(0),
            uuid: uuid.unwrap_or_default(),
        })
    }

    /// The UUID in the header, if it is one.
    pub fn uuid_of(page: &[u8]) -> Option<[u8; 16]> {
        let uuid = Self::parse(page).ok()?.uuid;
        (uuid != [0; 16]).then_some(uuid)
    }

    /// Says how the header is known to be the dead kernel's area's, of so many slots and, if it is
    /// known, with such a first page.
    pub fn same(slots: u64, then: Option<&[u8]>, now: &[u8]) -> Result<String, Refusal> {
        let found = Self::parse(now).map_err(|why| Refusal::certain(why, HINT))?;
        let Some(before) = then.and_then(|page| Self::parse(page).ok()) else {
            return match u64::from(found.last_page) + 1 {
                n if n == slots => Ok(format!("of the same {slots} pages")),
                n => Err(Refusal::certain(
                    format!("it has {n} pages and had {slots}: it was made anew (mkswap)"),
                    HINT,
                )),
            };
        };
        if before.uuid != found.uuid {
            return Err(Refusal::certain(
                format!(
                    "it was made anew (mkswap): its UUID was {}, and is {}",
                    text(&before.uuid),
                    text(&found.uuid)
                ),
                HINT,
            ));
        }
        if before != found || then.and_then(|p| p.get(VERSION..)) != now.get(VERSION..) {
            return Err(Refusal::certain("its header is another", HINT));
        }
        Ok(format!("UUID {}", text(&found.uuid)))
    }
}

/// A UUID as people write it.
fn text(uuid: &[u8; 16]) -> String {
    let mut out = String::new();
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        out.push_str(&format!("{byte:02x}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(last: u32, uuid: u8, magic: &[u8; 10]) -> Vec<u8> {
        let mut page = vec![0; 4096];
        page[VERSION] = 1;
        page[LAST_PAGE..LAST_PAGE + 4].copy_from_slice(&last.to_le_bytes());
        page[UUID].fill(uuid);
        page[MAGIC].copy_from_slice(magic);
        page
    }

    #[test]
    fn another_mkswap_is_seen() {
        let magic = b"SWAPSPACE2";
        let was = page(99, 7, magic);
        let why = |then: Option<&[u8]>, now: &[u8]| match Header::same(100, then, now) {
            Ok(evidence) => evidence,
            Err(refusal) => format!("no: {}", refusal.why),
        };
        assert_eq!(
            why(Some(&was), &was),
            "UUID 07070707-0707-0707-0707-070707070707"
        );
        assert_eq!(why(None, &was), "of the same 100 pages");
        assert!(why(Some(&was), &page(99, 8, magic)).starts_with("no: it was made anew"));
        assert!(why(None, &page(98, 7, magic)).contains("99 pages and had 100"));
        assert!(why(Some(&was), &page(98, 7, magic)).starts_with("no: "));
        assert!(why(Some(&was), &vec![0; 4096]).contains("no swap signature"));
        assert!(why(Some(&was), &page(99, 7, b"S1SUSPEND\0")).contains("hibernated"));
        assert!(why(None, &[]).starts_with("no: "));
        // A header of the dump that is none says nothing.
        assert_eq!(why(Some(&[0; 4096]), &was), "of the same 100 pages");
    }
}

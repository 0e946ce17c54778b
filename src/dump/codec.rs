//! One stored page to 4096 bytes: exactly one page must come out, else it is an error.
//!
//! About a third of damaged LZO pages decode without complaint (docs/dump-formats.md), so the
//! length is checked here and structures are cross-checked above.

use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::DCtx;

use super::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;

/// How a page is stored. makedumpfile diskdump_mod.h, `DUMP_DH_COMPRESSED_*`, in `page_desc.flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Raw,
    Zlib,
    Lzo,
    Snappy,
    Zstd,
}

impl Codec {
    /// The codec that the flags name; `None` if they name two, or one that is unknown.
    pub fn from_flags(flags: u32) -> Option<Codec> {
        // 0x8 (incomplete) and 0x10 (vmemmap excluded) speak of the dump, not of the page.
        match flags & !0x18 {
            0 => Some(Codec::Raw),
            0x1 => Some(Codec::Zlib),
            0x2 => Some(Codec::Lzo),
            0x4 => Some(Codec::Snappy),
            0x20 => Some(Codec::Zstd),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Codec::Raw => "uncompressed",
            Codec::Zlib => "zlib",
            Codec::Lzo => "lzo",
            Codec::Snappy => "snappy",
            Codec::Zstd => "zstd",
        }
    }
}

/// Decodes pages; keep one for each thread, it holds the codecs' state: 48 KiB for zlib, and 160 KiB
/// for zstd once it has met such a page. No codec allocates anything for a page.
pub(super) struct Decoder {
    zlib: Decompress,
    zstd: Option<DCtx<'static>>,
    snappy: snap::raw::Decoder,
}

impl Decoder {
    pub fn new() -> Decoder {
        Decoder {
            zlib: Decompress::new(true),
            zstd: None,
            snappy: snap::raw::Decoder::new(),
        }
    }

    /// Decodes `stored` into exactly one page, or says what is wrong.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], page: &mut [u8]) -> Result<(), String> {
        debug_assert_eq!(page.len(), PAGE);
        let got = match codec {
            Codec::Raw if stored.len() == PAGE => {
                page.copy_from_slice(stored);
                return Ok(());
            }
            Codec::Raw => stored.len(),
            Codec::Zlib => {
                self.zlib.reset(true);
                let status = self
                    .zlib
                    .decompress(stored, page, FlushDecompress::Finish)
                    .map_err(|e| format!("zlib says: {e}"))?;
                if status != Status::StreamEnd {
                    return Err(format!(
                        "zlib stream does not end after {} bytes in, {} out",
                        self.zlib.total_in(),
                        self.zlib.total_out()
                    ));
                }
                usize::try_from(self.zlib.total_out()).unwrap_or(usize::MAX)
            }
            Codec::Lzo => lzokay::decompress::decompress(stored, page)
                .map_err(|e| format!("lzo says: {e}"))?,
            Codec::Snappy => self
                .snappy
                .decompress(stored, page)
                .map_err(|e| format!("snappy says: {e}"))?,
            Codec::Zstd => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    None => self
                        .zstd
                        .insert(DCtx::try_create().ok_or("no memory for a zstd decoder")?),
                };
                // Straight into the page: the window that a frame asks for is never allocated.
                zstd.decompress(page, stored)
                    .map_err(|e| format!("zstd says: {}", zstd_safe::get_error_name(e)))?
            }
        };
        if got == PAGE {
            Ok(())
        } else {
            Err(format!(
                "{} page of {got} bytes instead of {PAGE}",
                codec.name()
            ))
        }
    }
}

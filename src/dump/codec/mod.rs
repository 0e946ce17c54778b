//! One stored page to 4096 bytes: exactly one page must come out, else it is an error.
//!
//! About a third of damaged LZO pages decode without complaint (docs/dump-formats.md), so the
//! length is checked here and structures are cross-checked above. Why these decoders and no others:
//! docs/performance.md. This room knows nothing of the others, so that `benches/` can take it alone.

mod lzo;

use libdeflater::Decompressor;
use lzo::Lzo;
use zstd_safe::DCtx;

const PAGE: usize = 4096;

/// How a page is stored. makedumpfile diskdump_mod.h, `DUMP_DH_COMPRESSED_*`, in `page_desc.flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Raw,
    Zlib,
    Lzo,
    Snappy,
    Zstd,
    /// What follows is in no dump: how the kernel compresses swapped pages. `lzo` and `lzo-rle`.
    KernelLzo,
    /// A block.
    Lz4,
    /// zlib's without its header.
    Deflate,
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
            Codec::KernelLzo => "lzo-rle",
            Codec::Lz4 => "lz4",
            Codec::Deflate => "deflate",
        }
    }
}

/// Decodes pages; keep one for each thread, it holds the codecs' state: 11 KiB for zlib, 8 KiB for
/// lzo, 160 KiB for zstd, each from the first such page on. No codec allocates anything for a page.
#[derive(Default)]
pub(crate) struct Decoder {
    zlib: Option<Decompressor>,
    lzo: Option<Lzo>,
    snappy: snap::raw::Decoder,
    zstd: Option<DCtx<'static>>,
}

impl Decoder {
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Decodes `stored` into exactly one page, or says what is wrong. Of a page that is wrong,
    /// anything may be in `page`.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], page: &mut [u8]) -> Result<(), String> {
        debug_assert_eq!(page.len(), PAGE);
        let got = match codec {
            Codec::Raw => {
                if stored.len() == PAGE {
                    page.copy_from_slice(stored);
                }
                stored.len()
            }
            Codec::Zlib => self
                .zlib
                .get_or_insert_with(Decompressor::new)
                .zlib_decompress(stored, page)
                .map_err(|e| format!("zlib says: {e}"))?,
            Codec::Lzo => {
                let bytes = self
                    .lzo
                    .get_or_insert_with(Lzo::new)
                    .decode(stored)
                    .map_err(|e| format!("lzo says: {e}"))?;
                if bytes.len() == PAGE {
                    page.copy_from_slice(bytes);
                }
                bytes.len()
            }
            Codec::KernelLzo => {
                let bytes = self
                    .lzo
                    .get_or_insert_with(Lzo::new)
                    .decode_kernels(stored)
                    .map_err(|e| format!("lzo says: {e}"))?;
                if bytes.len() == PAGE {
                    page.copy_from_slice(bytes);
                }
                bytes.len()
            }
            Codec::Lz4 => lz4_flex::block::decompress_into(stored, page)
                .map_err(|e| format!("lz4 says: {e}"))?,
            Codec::Deflate => self
                .zlib
                .get_or_insert_with(Decompressor::new)
                .deflate_decompress(stored, page)
                .map_err(|e| format!("deflate says: {e}"))?,
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

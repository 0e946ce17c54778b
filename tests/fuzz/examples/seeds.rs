//! Writes sound inputs for every fuzzer to DIR/TARGET, and with a dump also pieces of its real BTF
//! and kallsyms: `cargo run --example seeds -- DIR [DUMP]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmrestore::dump::Dump;
use vmrestore::kernel::Kernel;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut args = std::env::args_os().skip(1);
    let root = PathBuf::from(args.next().ok_or("name a directory to write to")?);
    for entry in vmrestore_fuzz::entries::ENTRIES {
        for (name, bytes) in (entry.seeds)() {
            write(&root, entry.name, &name, &bytes)?;
        }
    }
    if let Some(dump) = args.next() {
        let dump = Arc::new(Dump::open(dump.as_ref())?);
        let info = dump.vmcoreinfo().ok_or("the dump has no note")?.to_owned();
        let kernel = Kernel::open(dump.clone(), &info)?;
        write(
            &root,
            "btf",
            "real_vmlinux",
            &[&[0], &*btf(&kernel)?].concat(),
        )?;
        write(
            &root,
            "btf",
            "real_kvm",
            &[&[1], &*module_btf(&kernel)?].concat(),
        )?;
        write(&root, "kallsyms", "real", &kallsyms(&kernel)?)?;
    }
    Ok(())
}

fn write(root: &Path, target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let dir = root.join(target);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join(name), bytes)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The first types and the first strings of a blob, with a header of their own.
fn cut(blob: &[u8], most: usize) -> Vec<u8> {
    let header = word(blob, 4) as usize;
    let section = |at: usize| {
        let start = header + word(blob, at) as usize;
        &blob[start..start + word(blob, at + 4) as usize]
    };
    let (mut types, strings) = (section(8), section(16));
    let all = types;
    // Whole types only: struct btf_type and what follows it by kind.
    let mut end = 0;
    while end + 12 <= all.len() && end < most {
        let info = word(all, end + 4);
        let vlen = (info & 0xffff) as usize;
        end += 12
            + match info >> 24 & 31 {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => vlen * 12,
                6 | 13 => vlen * 8,
                _ => 0,
            };
    }
    types = &types[..end.min(all.len())];
    let strings = &strings[..strings.len().min(most)];
    let mut out = blob[..4].to_vec();
    let (types_len, strings_len) = (types.len() as u32, strings.len() as u32);
    for word in [24, 0, types_len, types_len, strings_len] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    [&out, types, strings].concat()
}

fn btf(kernel: &Kernel) -> Outcome<Vec<u8>> {
    let (start, stop) = (kernel.symbol("__start_BTF")?, kernel.symbol("__stop_BTF")?);
    let mut blob = vec![0; (stop - start) as usize];
    kernel.read(start, &mut blob)?;
    Ok(cut(&blob, 12 << 10))
}

fn module_btf(kernel: &Kernel) -> Outcome<Vec<u8>> {
    let head = kernel.object("list_head", kernel.symbol("btf_modules")?)?;
    for module in vmrestore::kernel::containers::list(&head, "btf_module", "list")? {
        if module.follow("module")?.get("name")?.string()? == "kvm" {
            let btf = module.follow("btf")?;
            let blob = btf.follow("data")?.read_bytes(btf.u("data_size")?)?;
            return Ok(cut(&blob, 12 << 10));
        }
    }
    Err("kvm has no BTF".into())
}

/// An image of the real tokens and a few hundred real names around `_stext`.
fn kallsyms(kernel: &Kernel) -> Outcome<Vec<u8>> {
    let info = kernel.vmcoreinfo();
    let at = |name: &str| {
        info.symbol(name)?
            .ok_or(format!("no {name}"))
            .map_err(Box::<dyn std::error::Error>::from)
    };
    let bytes = |from: u64, len: usize| -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; len];
        kernel.read(from, &mut bytes)?;
        Ok(bytes)
    };
    let count = kernel.read_u32(at("kallsyms_num_syms")?)? as usize;
    let names = bytes(at("kallsyms_names")?, 256 << 10)?;
    let offsets = bytes(at("kallsyms_offsets")?, count * 4)?;
    let base = kernel.read_u64(at("kallsyms_relative_base")?)?;
    let stext = at("_stext")?;
    // Where it is, by its address as a kernel with absolute per-CPU symbols stores it.
    let wanted = (-1 - (stext - base) as i64) as i32;
    let place = offsets
        .chunks_exact(4)
        .position(|raw| i32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) == wanted)
        .ok_or("_stext is not in kallsyms")?;
    let kept = place.saturating_sub(20)..place + 180;
    let (mut starts, mut cursor) = (Vec::new(), 0);
    for _ in 0..=kept.end {
        starts.push(cursor);
        cursor += 1 + usize::from(names[cursor]);
    }
    let (first, last) = (starts[kept.start], starts[kept.end]);
    let index = bytes(at("kallsyms_token_index")?, 512)?;
    let ends = usize::from(u16::from_le_bytes([index[510], index[511]])) + 64;
    let tokens = bytes(at("kallsyms_token_table")?, ends)?;

    let mut image = vec![0x90; 64];
    let mut note = format!(
        "OSRELEASE=real\nNUMBER(phys_base)={}\nSYMBOL(_stext)={stext:x}\nSYMBOL(init_top_pgt)={stext:x}\n",
        0x10_0000 - (stext & 0x7fff_ffff) as i64
    );
    let mut put = |name: &str, bytes: &[u8]| {
        image.resize(image.len().next_multiple_of(8), 0);
        note += &format!("SYMBOL({name})={:x}\n", stext + image.len() as u64);
        image.extend_from_slice(bytes);
    };
    put("kallsyms_offsets", &offsets[kept.start * 4..kept.end * 4]);
    put("kallsyms_relative_base", &base.to_le_bytes());
    put("kallsyms_num_syms", &(kept.len() as u32).to_le_bytes());
    put("kallsyms_names", &names[first..last]);
    put("kallsyms_markers", &[0; 4]);
    put("kallsyms_token_table", &tokens);
    put("kallsyms_token_index", &index);
    Ok([note.as_bytes(), &[0], &image].concat())
}

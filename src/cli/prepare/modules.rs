//! Kernel modules: which file is which, what each needs, and which of them drive a device.

use super::plan::Module;
use goblin::elf::Elf;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Modules in a directory, by name.
#[derive(Debug, Default)]
pub struct Tree {
    files: BTreeMap<String, PathBuf>,
    /// Names that another may be asked for by: `crypto-crc32c`. Read when first needed.
    aliases: Option<BTreeMap<String, String>>,
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// `depends=`, and what `softdep=` wants before it.
    pub needs: Vec<String>,
    /// Those it would like.
    pub likes: Vec<String>,
    pub aliases: Vec<String>,
    /// The kernel that it was built for: the first word of `vermagic=`.
    pub release: Option<String>,
}

impl Tree {
    /// All modules below a directory, as `/lib/modules/RELEASE` has them or any other way.
    pub fn of(directory: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut left = vec![directory.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                // `build` and `source` are links to other trees.
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => left.push(path),
                    _ => {
                        if let Some(name) = name_of(&path) {
                            files.entry(name).or_insert(path);
                        }
                    }
                }
            }
        }
        Self {
            files,
            aliases: None,
        }
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The file of a module.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.files.get(&plain(name)).map(PathBuf::as_path)
    }

    /// The kernel that a module's file was built for, where it says so.
    ///
    /// # Errors
    /// It cannot be read, or is no module.
    pub fn release_of(path: &Path) -> Result<Option<String>, String> {
        let content = read(path).map_err(|e| e.to_string())?;
        Ok(info(&content)?.release)
    }

    /// These modules with all that they need, each after that. Those without a file (built in, or not
    /// there) are in the second list.
    ///
    /// # Errors
    /// A module cannot be read.
    pub fn in_order<'n>(
        &mut self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> io::Result<(Vec<Module>, Vec<String>)> {
        let (mut order, mut missing) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(&plain(name), &mut seen, &mut order, &mut missing)?;
        }
        Ok((order, missing))
    }

    fn visit(
        &mut self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<Module>,
        missing: &mut Vec<String>,
    ) -> io::Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.file(name).map(Path::to_owned) else {
            missing.push(name.to_owned());
            return Ok(());
        };
        let info = info(&read(&path)?)
            .map_err(|why| io::Error::other(format!("{}: {why}", path.display())))?;
        for needed in &info.needs {
            self.visit(needed, seen, order, missing)?;
        }
        for liked in &info.likes {
            if let Some(name) = self.known_as(liked) {
                self.visit(&name, seen, order, missing)?;
            }
        }
        order.push(Module {
            name: name.to_owned(),
            path,
            options: options(name),
        });
        Ok(())
    }

    /// The module of that name or alias.
    fn known_as(&mut self, name: &str) -> Option<String> {
        let name = plain(name);
        if self.files.contains_key(&name) {
            return Some(name);
        }
        let files = &self.files;
        let aliases = self.aliases.get_or_insert_with(|| {
            let mut all = BTreeMap::new();
            for (module, path) in files {
                let Ok(info) = read(path).and_then(|b| info(&b).map_err(io::Error::other)) else {
                    continue;
                };
                for alias in info.aliases {
                    all.entry(plain(&alias)).or_insert_with(|| module.clone());
                }
            }
            all
        });
        aliases
            .get(&name)
            .or_else(|| aliases.get(&format!("crypto_{name}")))
            .cloned()
    }
}

/// A module's name by its file's: `kvm_amd` of `kvm-amd.ko.xz`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| plain(name))
}

fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// A module's content, unpacked.
///
/// # Errors
/// It cannot be read or unpacked.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    /// No module is so long.
    const MOST: usize = 256 << 20;
    let bytes = fs::read(path)?;
    let failed = |why: String| io::Error::other(format!("{}: {why}", path.display()));
    match path.extension().and_then(|e| e.to_str()) {
        Some("zst") => {
            let size = zstd_safe::get_frame_content_size(&bytes).ok().flatten();
            let size = size.and_then(|s| usize::try_from(s).ok()).unwrap_or(MOST);
            let mut out = vec![0; size.min(MOST)];
            let got = zstd_safe::decompress(&mut out[..], &bytes)
                .map_err(|code| failed(zstd_safe::get_error_name(code).to_owned()))?;
            out.truncate(got);
            Ok(out)
        }
        Some("gz") => {
            // The length, modulo 4 GiB, is at its end.
            let size = bytes
                .last_chunk::<4>()
                .map_or(0, |b| u32::from_le_bytes(*b));
            let mut out = vec![0; (size as usize).min(MOST)];
            let got = libdeflater::Decompressor::new()
                .gzip_decompress(&bytes, &mut out)
                .map_err(|e| failed(e.to_string()))?;
            out.truncate(got);
            Ok(out)
        }
        Some("xz") => {
            let unpacked = std::process::Command::new("xz")
                .arg("-dc")
                .arg(path)
                .output()?;
            match unpacked.status.success() {
                true => Ok(unpacked.stdout),
                false => Err(failed(
                    String::from_utf8_lossy(&unpacked.stderr).trim().to_owned(),
                )),
            }
        }
        _ => Ok(bytes),
    }
}

/// Reads the section `.modinfo`: `key=value`, each ended by a zero byte.
///
/// # Errors
/// It is no module.
pub fn info(module: &[u8]) -> Result<Info, String> {
    let elf = Elf::parse(module).map_err(|e| e.to_string())?;
    let section = elf
        .section_headers
        .iter()
        .find(|s| elf.shdr_strtab.get_at(s.sh_name) == Some(".modinfo"))
        .and_then(|s| module.get(s.file_range()?))
        .ok_or("no section .modinfo")?;
    let mut found = Info::default();
    for entry in section.split(|b| *b == 0) {
        let entry = String::from_utf8_lossy(entry);
        let Some((key, value)) = entry.split_once('=') else {
            continue;
        };
        match key {
            "depends" => {
                let names = value.split(',').filter(|n| !n.is_empty());
                found.needs.extend(names.map(plain));
            }
            // "pre: crc32c post: other"
            "softdep" => {
                let mut before = false;
                for word in value.split_whitespace() {
                    match word {
                        "pre:" => before = true,
                        "post:" => before = false,
                        name if before => found.likes.push(plain(name)),
                        _ => {}
                    }
                }
            }
            "alias" => found.aliases.push(value.to_owned()),
            "vermagic" => found.release = value.split_whitespace().next().map(str::to_owned),
            _ => {}
        }
    }
    Ok(found)
}

/// Modules that drive a device and those that it hangs on, the nearest last. `device`: its directory
/// in sysfs.
pub fn drivers(device: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(real) = fs::canonicalize(device) else {
        return found;
    };
    for at in real.ancestors().take_while(|at| *at != Path::new("/sys")) {
        if let Ok(module) = fs::read_link(at.join("driver/module"))
            && let Some(name) = module.file_name().and_then(|n| n.to_str())
        {
            found.push(name.to_owned());
        }
        // Of a disk that is made of others: theirs.
        for below in fs::read_dir(at.join("slaves"))
            .into_iter()
            .flatten()
            .flatten()
        {
            found.extend(drivers(&below.path()));
        }
    }
    found.reverse();
    found
}

/// Parameters of KVM's own modules, as they are: guests may see the difference.
fn options(name: &str) -> String {
    if !name.starts_with("kvm") {
        return String::new();
    }
    let entries = fs::read_dir(Path::new("/sys/module").join(name).join("parameters"));
    let mut all: Vec<String> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let value = fs::read_to_string(entry.path()).ok()?;
            let value = value.trim();
            let plain = !value.is_empty() && !value.contains(char::is_whitespace);
            plain.then(|| format!("{}={value}", entry.file_name().to_string_lossy()))
        })
        .collect();
    all.sort();
    all.join(" ")
}

/// A module that is loaded now, and is none that is built in.
pub fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module")
        .join(plain(name))
        .join("initstate")
        .exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one section `.modinfo`, and nothing else.
    fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64, 64 + info.len());
        let headers_at = (names_at + names.len()).next_multiple_of(8);
        let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
        out.resize(16, 0);
        out.extend(1u16.to_le_bytes());
        out.extend(62u16.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend([0; 16]);
        out.extend((headers_at as u64).to_le_bytes());
        out.extend(0u32.to_le_bytes());
        for half in [64u16, 0, 0, 64, 3, 2] {
            out.extend(half.to_le_bytes());
        }
        out.extend(info);
        out.extend(names);
        out.resize(headers_at, 0);
        let mut header = |name: u32, kind: u32, at: usize, size: usize| {
            out.extend(name.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend([0; 16]);
            out.extend((at as u64).to_le_bytes());
            out.extend((size as u64).to_le_bytes());
            out.extend([0; 8]);
            out.extend(1u64.to_le_bytes());
            out.extend([0; 8]);
        };
        header(0, 0, 0, 0);
        header(1, 1, info_at, info.len());
        header(10, 3, names_at, names.len());
        out
    }

    #[test]
    fn each_module_comes_after_what_it_needs() {
        let dir = std::env::temp_dir().join(format!("vmrestore-modules-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("kernel/x")).expect("makes");
        let write = |name: &str, info: &str| {
            fs::write(dir.join(name), module(info.as_bytes())).expect("writes");
        };
        write("kernel/x/kvm-amd.ko", "depends=kvm\0vermagic=6.1.0-x SMP\0");
        write("kernel/kvm.ko", "depends=irqbypass\0");
        write("irqbypass.ko", "depends=\0");
        write(
            "ext4.ko",
            "depends=built-in\0softdep=pre: crc32c post: never\0",
        );
        write("crc32c_generic.ko", "alias=crypto-crc32c\0");
        write("never.ko", "");
        let mut tree = Tree::of(&dir);
        let (order, missing) = tree.in_order(["ext4", "kvm_amd", "kvm"]).expect("reads");
        let order: Vec<&str> = order.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(
            order,
            ["crc32c_generic", "ext4", "irqbypass", "kvm", "kvm_amd"]
        );
        assert_eq!(missing, ["built_in"]);
        let found = info(&fs::read(dir.join("kernel/x/kvm-amd.ko")).expect("reads"));
        assert_eq!(found.expect("parses").release.as_deref(), Some("6.1.0-x"));
        assert!(info(b"no module").is_err());
        fs::remove_dir_all(&dir).expect("cleans up");
    }
}

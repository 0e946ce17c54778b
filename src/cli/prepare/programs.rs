//! What a program needs beside itself.

use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use std::fs;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The loader and the libraries of a program; the interpreter of a script, with its own.
///
/// # Errors
/// It cannot be read, or a library is not there.
pub fn needs(program: &Path) -> io::Result<Vec<PathBuf>> {
    let mut file = fs::File::open(program)?;
    let mut start = [0; 2];
    file.read_exact(&mut start)?;
    if &start == b"#!" {
        let mut line = String::new();
        io::BufReader::new(file).take(256).read_line(&mut line)?;
        let Some(interpreter) = line.split_whitespace().next() else {
            return Ok(Vec::new());
        };
        let interpreter = PathBuf::from(interpreter);
        let mut all = needs(&interpreter)?;
        all.push(interpreter);
        return Ok(all);
    }
    drop(file);
    let bytes = fs::read(program)?;
    let elf = Elf::parse(&bytes).map_err(io::Error::other)?;
    let Some(loader) = elf.interpreter else {
        return Ok(Vec::new());
    };
    let output = Command::new(loader).arg("--list").arg(program).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("{}: {said}", program.display())));
    }
    let mut all = libraries(&String::from_utf8_lossy(&output.stdout));
    all.push(PathBuf::from(loader));
    Ok(all)
}

/// The files in what the loader lists: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f…)`.
fn libraries(listing: &str) -> Vec<PathBuf> {
    let word = |line: &str| {
        let mut words = line.split_whitespace();
        words.find(|w| w.starts_with('/')).map(PathBuf::from)
    };
    listing.lines().filter_map(word).collect()
}

/// A program without what is only there for debuggers: what follows the last part that is loaded.
pub fn without_debug_information(program: &[u8]) -> Vec<u8> {
    let whole = || program.to_vec();
    let Ok(elf) = Elf::parse(program) else {
        return whole();
    };
    let ends = elf.program_headers.iter().filter(|h| h.p_type == PT_LOAD);
    let end = ends.map(|h| h.p_offset.saturating_add(h.p_filesz)).max();
    let Some(end) = end.and_then(|end| usize::try_from(end).ok()) else {
        return whole();
    };
    let mut kept = program.get(..end).map_or_else(whole, <[u8]>::to_vec);
    // e_shoff; e_shnum and e_shstrndx: there are no section headers any more.
    for field in [0x28..0x30, 0x3c..0x40] {
        if let Some(field) = kept.get_mut(field) {
            field.fill(0);
        }
    }
    kept
}

/// The first of these that is on this host.
pub fn first_of(paths: &[&str]) -> Option<PathBuf> {
    paths.iter().map(PathBuf::from).find(|p| p.exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_runs_without_its_debug_information() {
        let me = std::env::current_exe().expect("this test");
        let bytes = fs::read(&me).expect("reads");
        let kept = without_debug_information(&bytes);
        assert!(kept.len() < bytes.len());
        let path = std::env::temp_dir().join(format!("vmrestore-bare-{}", std::process::id()));
        fs::write(&path, kept).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
        let output = Command::new(&path).arg("--help").output().expect("runs");
        fs::remove_file(&path).expect("cleans up");
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn libraries_and_interpreters_are_named() {
        let found = needs(&std::env::current_exe().expect("this test")).expect("reads");
        assert!(found.iter().any(|p| p.ends_with("libc.so.6")), "{found:?}");
        assert!(found.iter().all(|p| p.exists()), "{found:?}");
        let listing = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibz.so.1 => /lib/libz.so.1 (0x7f)\n";
        assert_eq!(libraries(listing), [PathBuf::from("/lib/libz.so.1")]);
    }
}

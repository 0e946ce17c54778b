//! What the VMM's command line calls the guest.

use crate::kernel::{AddressSpace, KernelError, Object};

/// Name and UUID of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub name: Option<String>,
    pub uuid: Option<String>,
}

/// The arguments of a process, as its memory holds them.
pub(super) fn arguments(task: &Object<'_>) -> Result<Vec<String>, KernelError> {
    /// Linux allows more (a quarter of the stack's limit); no VMM's is near.
    const MOST: u64 = 1 << 20;
    let Some(mm) = task.follow_opt("mm")? else {
        return Ok(Vec::new());
    };
    let (start, end) = (mm.u("arg_start")?, mm.u("arg_end")?);
    let len = end.saturating_sub(start).min(MOST);
    let mut text = vec![0; usize::try_from(len).unwrap_or_default()];
    AddressSpace::new(task.kernel(), mm.ptr("pgd")?)?.read(start, &mut text)?;
    Ok(split(&text))
}

fn split(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    text.split(|b| *b == 0)
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect()
}

/// Name and UUID, from the command lines of the VMMs that are known: QEMU's `-name` and `-uuid`,
/// Firecracker's `--id`. Cloud Hypervisor's has neither.
pub(super) fn identity(arguments: &[String]) -> Identity {
    let after = |names: &[&str]| {
        arguments.iter().enumerate().skip(1).find_map(|(i, arg)| {
            names.iter().find_map(|name| {
                if arg == name {
                    return arguments.get(i + 1).map(String::as_str);
                }
                // Firecracker takes --id=NAME as well; QEMU's options have no such form.
                name.starts_with("--")
                    .then(|| arg.strip_prefix(name)?.strip_prefix('='))
                    .flatten()
            })
        })
    };
    let firecracker = arguments
        .first()
        .and_then(|a| a.rsplit('/').next())
        .is_some_and(|n| n.starts_with("firecracker") || n.starts_with("jailer"));
    let name = if firecracker {
        after(&["--id"]).map(str::to_owned)
    } else {
        after(&["-name", "--name"]).map(qemu_name)
    };
    let uuid = after(&["-uuid", "--uuid"]).map(str::to_owned);
    let not_empty = |s: Option<String>| s.filter(|s| !s.is_empty());
    Identity {
        name: not_empty(name),
        uuid: not_empty(uuid),
    }
}

/// The name in `-name [guest=]NAME[,key=value…]`; a comma within the name is doubled.
fn qemu_name(value: &str) -> String {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            (',', Some(',')) => {
                part.push(',');
                chars.next();
            }
            (',', _) => parts.push(std::mem::take(&mut part)),
            _ => part.push(c),
        }
    }
    parts.push(part);
    parts
        .iter()
        .find_map(|p| p.strip_prefix("guest="))
        .or_else(|| {
            parts
                .first()
                .map(String::as_str)
                .filter(|p| !p.contains('='))
        })
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &[&str]) -> (Option<String>, Option<String>) {
        let arguments: Vec<String> = line.iter().map(|s| (*s).to_owned()).collect();
        let identity = identity(&arguments);
        (identity.name, identity.uuid)
    }

    fn some(s: &str) -> Option<String> {
        Some(s.to_owned())
    }

    #[test]
    fn libvirts_qemu() {
        let uuid = "8f1d2a9c-1b1e-4c57-9d0a-6c3b2f8d1e77";
        let line = [
            "/usr/bin/qemu-system-x86_64",
            "-name",
            "guest=db1,debug-threads=on",
            "-S",
            "-uuid",
            uuid,
        ];
        assert_eq!(of(&line), (some("db1"), some(uuid)));
    }

    #[test]
    fn plain_names_and_commas() {
        assert_eq!(of(&["qemu", "-name", "web"]).0, some("web"));
        assert_eq!(
            of(&["qemu", "-name", "web,process=q"]).0,
            some("web"),
            "options behind a plain name"
        );
        assert_eq!(of(&["qemu", "-name", "guest=a,,b,x=y"]).0, some("a,b"));
        assert_eq!(of(&["qemu", "-name", "debug-threads=on"]).0, None);
    }

    #[test]
    fn firecracker() {
        assert_eq!(of(&["/opt/firecracker", "--id", "vm-7"]).0, some("vm-7"));
        assert_eq!(of(&["firecracker", "--id=vm-7"]).0, some("vm-7"));
    }

    #[test]
    fn nameless() {
        assert_eq!(of(&["qemu", "-M", "microvm"]), (None, None));
        assert_eq!(of(&["qemu", "-name"]), (None, None), "cut short");
        assert_eq!(of(&[]), (None, None));
    }

    #[test]
    fn arguments_are_split_at_nuls() {
        assert_eq!(split(b"a\0\0b\0"), ["a", "", "b"]);
    }
}

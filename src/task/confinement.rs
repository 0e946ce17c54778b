//! What security modules (LSM) confine a thread to, and the keys that it holds: `task.real_cred`.

use crate::dataset::Confinement;
use crate::kernel::{Kernel, KernelError, Object};

/// Longest list of modules (`lsm_names`), and profiles of which an AppArmor label is stacked.
const MAX_NAMES: usize = 4096;
const MAX_PROFILES: u64 = 16;

/// What of a thread's confinement is not brought back: (what, why).
pub(super) type Losses = Vec<(&'static str, String)>;

/// A thread's labels and domains. What confines it and cannot be brought back
/// is said in [`Confinement::refused`]: it must not live on with less.
pub(super) fn read(task: &Object<'_>) -> Result<(Confinement, Losses), KernelError> {
    let cred = task.follow("real_cred")?;
    let mut found = Confinement::default();
    let mut losses = keys(&cred)?;
    let blob = cred.has("security").then(|| cred.ptr("security"));
    let blob = blob.transpose()?.unwrap_or(0);
    if blob == 0 {
        return Ok((found, losses));
    }
    let modules = modules(cred.kernel())?;
    for module in modules.iter().map(String::as_str) {
        match module {
            "apparmor" => match apparmor(task, &cred, blob) {
                Ok((label, exec)) => (found.apparmor, found.apparmor_exec) = (label, exec),
                Err(why) => found.refused = Some(format!("its AppArmor label: {why}")),
            },
            "landlock" => {
                let at = blob.wrapping_add(offset(cred.kernel(), module, "lbs_cred")?);
                let domain = cred.kernel().object("landlock_cred_security", at)?;
                if domain.ptr("domain")? != 0 {
                    found.refused = Some("it is in a Landlock sandbox, of its own making".into());
                }
            }
            "tomoyo" if !has_policy(cred.kernel()) => {}
            "selinux" | "smack" | "tomoyo" => losses.push((
                "security label",
                format!("{module} is not read: it has vmrestore's own"),
            )),
            _ => {}
        }
    }
    Ok((found, losses))
}

/// The security modules that the kernel ran with.
fn modules(kernel: &Kernel) -> Result<Vec<String>, KernelError> {
    if let Ok(at) = kernel.symbol("lsm_names") {
        let list = kernel.read_cstr(kernel.read_u64(at)?, MAX_NAMES)?;
        return Ok(list.split(',').map(str::to_owned).collect());
    }
    // Without the list each says of itself whether it was started.
    let started = |module: &&str| {
        let flag = kernel.symbol(&format!("{module}_initialized"));
        flag.is_ok_and(|at| kernel.read_u32(at).is_ok_and(|word| word & 0xff != 0))
    };
    let all = ["apparmor", "landlock"].into_iter().filter(started);
    Ok(all.map(str::to_owned).collect())
}

/// TOMOYO is started everywhere, and does nothing until it has a policy.
fn has_policy(kernel: &Kernel) -> bool {
    let loaded = kernel.symbol("tomoyo_policy_loaded");
    loaded.is_ok_and(|at| kernel.read_u32(at).is_ok_and(|word| word & 0xff != 0))
}

/// Where a module's part of a security blob is. Linux commit bbd3662a8348 ("Infrastructure
/// management of the cred security blob") (in v5.1).
fn offset(kernel: &Kernel, module: &str, part: &str) -> Result<u64, KernelError> {
    let sizes = kernel.symbol(&format!("{module}_blob_sizes"))?;
    kernel.object("lsm_blob_sizes", sizes)?.u(part)
}

/// The label of a thread, and the one that it is to get at its next execve.
type Labels = (Option<String>, Option<String>);

fn apparmor(task: &Object<'_>, cred: &Object<'_>, blob: u64) -> Result<Labels, String> {
    let kernel = cred.kernel();
    let say = |error: KernelError| error.to_string();
    let at = blob.wrapping_add(offset(kernel, "apparmor", "lbs_cred").map_err(say)?);
    let label = kernel.read_u64(at).map_err(say)?;
    let current = name(kernel, label)?;
    // What it had planned, or where it is to come back to from a hat.
    let Ok(own) = task.ptr("security") else {
        return Ok((current, None));
    };
    if own == 0 || !kernel.has_type("aa_task_ctx") {
        return Ok((current, None));
    }
    let at = own.wrapping_add(offset(kernel, "apparmor", "lbs_task").map_err(say)?);
    let context = kernel.object("aa_task_ctx", at).map_err(say)?;
    if context.ptr("previous").map_err(say)? != 0 {
        return Err("it wears a hat (aa_change_hat), which only its own token takes off".into());
    }
    let exec = match context.ptr("onexec").map_err(say)? {
        0 => None,
        label => name(kernel, label)?,
    };
    Ok((current, exec))
}

/// A label as /proc/PID/attr/current shows it, without its mode; `None`: unconfined.
fn name(kernel: &Kernel, label: u64) -> Result<Option<String>, String> {
    let say = |error: KernelError| error.to_string();
    let label = kernel.object("aa_label", label).map_err(say)?;
    let root = kernel.symbol("root_ns").and_then(|at| kernel.read_u64(at));
    let root = root.map_err(say)?;
    let count = label.u("size").map_err(say)?;
    if count == 0 || count > MAX_PROFILES {
        return Err(format!("it is of {count} profiles"));
    }
    let mut names = Vec::new();
    for profile in 0..count {
        let profile = label.follow(&format!("vec[{profile}]")).map_err(say)?;
        if profile.ptr("ns").map_err(say)? != root {
            return Err("it is of a namespace of policies (a container's)".into());
        }
        let name = profile.get("base.hname").and_then(|name| name.string());
        names.push(name.map_err(say)?);
    }
    let name = names.join("//&");
    Ok((name != "unconfined").then_some(name))
}

/// Keys of the kernel's keyrings, which are not made again.
fn keys(cred: &Object<'_>) -> Result<Losses, KernelError> {
    /// A login's session keyring has a link to its user's.
    const RINGS: [(&str, &str, u64); 3] = [
        ("thread_keyring", "keys of its thread keyring", 0),
        ("process_keyring", "keys of its process keyring", 0),
        ("session_keyring", "keys of its session keyring", 1),
    ];
    let mut losses = Losses::new();
    for (member, what, usual) in RINGS {
        if !cred.has(member) {
            continue;
        }
        if let Some(ring) = cred.follow_opt(member)?
            && ring.has("keys.nr_leaves_on_tree")
        {
            let count = ring.u("keys.nr_leaves_on_tree")?;
            if count > usual {
                losses.push((what, format!("there were {count}; keyrings are not read")));
            }
        }
    }
    Ok(losses)
}

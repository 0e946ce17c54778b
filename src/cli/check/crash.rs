//! How the host died, for people.

use crate::cli::table::utc;
use crate::extract::Crash;
use std::time::{SystemTime, UNIX_EPOCH};

/// Prints what is known; a line for what is not known is left out.
pub(super) fn print(crash: &Crash, live: bool) {
    println!("THE {}", if live { "KERNEL" } else { "CRASH" });
    let line = |what: &str, found: String| println!("      {what:<8}  {found}");
    let unknown = "the dump does not say (no CRASHTIME in its VMCOREINFO)";
    if !live {
        line("time", time(crash).unwrap_or_else(|| unknown.into()));
    }
    if let Some(host) = &crash.hostname {
        line("host", host.clone());
    }
    let kernel = [&crash.release, &crash.version].map(|s| s.clone().unwrap_or_default());
    if !kernel[0].is_empty() {
        line("kernel", kernel.join("  ").trim_end().to_owned());
    }
    match &crash.message {
        _ if live => line("message", "none: it is alive".into()),
        _ if crash.stopped_from_outside == Some(true) => line(
            "message",
            "none: it did not panic, it was stopped from outside (by a hypervisor)".into(),
        ),
        Some(message) => line("message", message.clone()),
        None => {
            let why = crash.log_unreadable.as_deref();
            let why = why.unwrap_or("the kernel's log has no panic in it");
            line("message", format!("unknown: {why}"));
        }
    }
    if let Some(cpu) = crash.cpu {
        let thread = match (&crash.pid, &crash.comm) {
            (Some(0), Some(_)) => ", which was idle".to_owned(),
            (Some(pid), Some(comm)) => format!(", in thread {pid} ({comm})"),
            _ => String::new(),
        };
        line("where", format!("CPU {cpu}{thread}"));
    }
    for (index, l) in crash.log.iter().enumerate() {
        let what = if index == 0 { "log" } else { "" };
        line(what, format!("[{:>12.6}] {}", l.seconds, l.text));
    }
}

fn time(crash: &Crash) -> Option<String> {
    let at = crash.time?;
    let mut text = utc(at);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    if let Some(ago) = i64::try_from(now).ok()?.checked_sub(at).filter(|s| *s >= 0) {
        text += &format!(", {} ago", span(ago.unsigned_abs()));
    }
    if let Some(uptime) = crash.uptime_seconds {
        text += &format!("; up for {}", span(uptime));
    }
    Some(text)
}

/// The two largest units of a span of time.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn spans_read_as_people_say_them() {
        let said = [0, 119, 120, 7199, 7260, 172_800 + 7200].map(super::span);
        let wanted = [
            "0 s",
            "119 s",
            "2 min",
            "119 min",
            "2 h 1 min",
            "2 days 2 h",
        ];
        assert_eq!(said, wanted);
    }
}

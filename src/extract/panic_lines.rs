//! Which lines of a dead kernel's log say why it died.

use crate::kernel::LogRecord;

/// Lines that are quoted at most, and characters of each.
const MAX_LINES: usize = 8;
const MAX_CHARS: usize = 200;
/// How long before the panic its cause may have been printed. Nanoseconds: a machine that dies of an
/// oops may print for long on a slow console.
const CAUSE_WITHIN_NS: u64 = 60_000_000_000;

/// How `panic()` begins its last words. Linux kernel/panic.c.
const PANIC: &str = "Kernel panic - not syncing";
/// How reports of what leads to a panic begin, behind a subsystem's name and a colon if need be.
const CAUSES: [&str; 21] = [
    "BUG: ",
    "Oops: ",
    "Oops - ",
    "kernel BUG at ",
    "Internal error: ",
    "general protection fault",
    "double fault: ",
    "divide error: ",
    "invalid opcode: ",
    "stack segment: ",
    "unchecked MSR access error",
    "Unable to handle kernel ",
    "watchdog: BUG: ",
    "Watchdog detected hard LOCKUP",
    "INFO: task ",
    "INFO: rcu",
    "sysrq: Trigger a crash",
    "sysrq: SysRq : Trigger a crash",
    "Uhhuh. NMI received",
    "[Hardware Error]: ",
    "Out of memory and no killable processes",
];

/// What the log says of the death.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PanicLines {
    /// The one line that says it best.
    pub message: Option<String>,
    /// That line and those that lead to it, with their time in nanoseconds.
    pub lines: Vec<(u64, String)>,
}

/// Picks the lines. `log` begins with the oldest record.
pub(super) fn pick(log: &[LogRecord]) -> PanicLines {
    let lines: Vec<(u64, &str)> = log
        .iter()
        .flat_map(|r| r.text.lines().map(move |line| (r.time_ns, line)))
        .collect();
    let panic = lines.iter().rposition(|(_, line)| line.contains(PANIC));
    // What was printed after a panic (by a console driver, say) did not cause it.
    let until = panic.unwrap_or(lines.len());
    let death = lines
        .get(until.min(lines.len().saturating_sub(1)))
        .map_or(0, |(time, _)| *time);
    let recent = |time: u64| death.saturating_sub(time) <= CAUSE_WITHIN_NS;
    // From where the last of the causes before it begins.
    let first_cause = lines[..until]
        .iter()
        .enumerate()
        .rev()
        .take_while(|(_, (time, _))| recent(*time))
        .filter(|(_, (_, line))| is_cause(line))
        .last()
        .map(|(index, _)| index);
    let from = first_cause.unwrap_or(until);
    let mut picked: Vec<(u64, String)> = Vec::new();
    let mut seen_rip = false;
    for (time, line) in &lines[from..until] {
        let rip = line.starts_with("RIP: ") && !seen_rip;
        let cpu = line.starts_with("CPU: ") && !picked.is_empty();
        let known = picked.iter().any(|(_, l)| l == line);
        if (is_cause(line) || rip || cpu) && !known && picked.len() < MAX_LINES - 1 {
            seen_rip |= rip;
            picked.push((*time, quote(line)));
        }
    }
    if let Some((time, line)) = panic.and_then(|at| lines.get(at)) {
        picked.push((*time, quote(line)));
    }
    let said = panic
        .and_then(|at| lines.get(at))
        .or_else(|| first_cause.and_then(|at| lines.get(at)));
    PanicLines {
        message: said.map(|(_, line)| quote(line)),
        lines: picked,
    }
}

fn is_cause(line: &str) -> bool {
    CAUSES.iter().any(|cause| {
        line.find(cause)
            // Behind "watchdog: ", "mce: ", "NMI watchdog: "; not in the middle of a sentence.
            .is_some_and(|at| at == 0 || at <= 24 && line[..at].ends_with(": "))
    })
}

/// A line as it can be shown: the log is as hostile as the rest of the dump.
fn quote(line: &str) -> String {
    line.chars()
        .take(MAX_CHARS)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[(u64, &str)]) -> Vec<LogRecord> {
        lines
            .iter()
            .map(|(seconds, text)| LogRecord {
                time_ns: seconds * 1_000_000_000,
                text: (*text).to_owned(),
            })
            .collect()
    }

    #[test]
    fn a_sysrq_crash_is_quoted_with_its_trigger() {
        let found = pick(&log(&[
            (1, "Linux version 6.1.0"),
            (30, "kvm [4811]: vcpu0, Unhandled WRMSR"),
            (43, "sysrq: Trigger a crash"),
            (43, "Kernel panic - not syncing: sysrq triggered crash"),
            (43, "CPU: 0 PID: 1 Comm: sh Not tainted 6.1.0"),
            (43, "Call Trace:"),
        ]));
        assert_eq!(
            found.message.as_deref(),
            Some("Kernel panic - not syncing: sysrq triggered crash")
        );
        let lines: Vec<&str> = found.lines.iter().map(|(_, l)| l.as_str()).collect();
        assert_eq!(
            lines,
            [
                "sysrq: Trigger a crash",
                "Kernel panic - not syncing: sysrq triggered crash"
            ]
        );
    }

    #[test]
    fn an_oops_that_goes_straight_to_the_capture_kernel_has_no_panic_line() {
        let found = pick(&log(&[
            (5, "BUG: an old one that the machine survived"),
            (
                900,
                "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            ),
            (900, "#PF: supervisor read access in kernel mode"),
            (900, "Oops: 0000 [#1] PREEMPT SMP NOPTI"),
            (900, "CPU: 3 PID: 812 Comm: kworker/3:1 Not tainted"),
            (900, "RIP: 0010:broken_driver+0x14/0x40 [broken]"),
            (900, "RSP: 0018:ffffb2"),
            (900, "RIP: 0033:0x7f00"),
        ]));
        assert_eq!(
            found.message.as_deref(),
            Some("BUG: kernel NULL pointer dereference, address: 0000000000000008")
        );
        let lines: Vec<&str> = found.lines.iter().map(|(_, l)| l.as_str()).collect();
        assert_eq!(
            lines,
            [
                "BUG: kernel NULL pointer dereference, address: 0000000000000008",
                "Oops: 0000 [#1] PREEMPT SMP NOPTI",
                "CPU: 3 PID: 812 Comm: kworker/3:1 Not tainted",
                "RIP: 0010:broken_driver+0x14/0x40 [broken]",
            ]
        );
    }

    #[test]
    fn hostile_lines_are_cut_and_cleaned_and_an_empty_log_says_nothing() {
        assert_eq!(pick(&[]), PanicLines::default());
        let long = format!("Kernel panic - not syncing: \x1b[2J{}", "x".repeat(5000));
        let message = pick(&log(&[(1, &long)])).message.unwrap();
        assert_eq!(message.chars().count(), 200);
        assert!(message.contains("?[2J"));
    }
}

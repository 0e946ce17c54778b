//! The small guest's lines and disk.

use super::Verdict;
use super::line::{Line, beginning, splitmix};

/// Bytes of pattern that each line's `sum` covers.
const PATTERN_BYTES: u64 = 32 << 20;
/// Bytes with the same word repeated.
const RUN_BYTES: u64 = 64;
/// Pages that are rewritten in turn, one for each line.
const LIVE_PAGES: u64 = 256;
/// Separates the stream of the changing pages from the pattern's.
const LIVE_SALT: u64 = u64::from_be_bytes(*b"livepage");
/// Bytes of one block of the guest's disk.
const BLOCK: usize = 4096;

/// What must hold from line to line.
struct Expect {
    nonce: u64,
    pattern_sum: u64,
    next: u64,
    live_sum: u64,
    milliseconds: u64,
    wall: u64,
    stale: String,
    off: bool,
    /// Blocks of the first disk's ring; 0: all of it.
    ring: u64,
}

/// Judges a guest: `before` is what was seen of its serial line up to the
/// crash, `after` the whole of it at the end, `disk` its disk's image.
#[must_use]
pub fn guest(before: &[u8], after: &[u8], disk: Option<&[u8]>, new_lines: usize) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.compare_beginning(before, after);
    verdict.keep_lines(before, after);
    let Some(start) = beginning(after) else {
        verdict.fault(0, "no output", "");
        return verdict;
    };
    let first_line = after[..start].iter().filter(|b| **b == b'\n').count() + 1;
    let seen_lines = before.iter().filter(|byte| **byte == b'\n').count();
    let mut expect: Option<Expect> = None;
    let mut lines: Vec<&[u8]> = after[start..].split(|byte| *byte == b'\n').collect();
    // What follows the last newline was cut off when the host went down.
    lines.pop();
    for (i, raw) in lines.iter().enumerate() {
        let number = first_line + i;
        let text = String::from_utf8_lossy(raw);
        if expect.as_ref().is_some_and(|e| e.off) {
            // The kernel says a word when it turns the machine off.
            if text.contains("BOOT") {
                verdict.fault(number, "booted again", &text);
            }
            continue;
        }
        let checked =
            Line::parse(&text).and_then(|line| check(&line, &mut expect, &mut verdict.losses));
        if let Err(what) = checked {
            verdict.fault(number, what, &text);
        }
        let last = expect.as_ref().map_or(0, |e| e.next - 1);
        if number <= seen_lines {
            verdict.last_before = last;
        }
        verdict.last_after = last;
    }
    verdict.compare_numbers(new_lines);
    match (&expect, disk) {
        (Some(expect), Some(disk)) => check_disk(expect, disk, &mut verdict),
        (None, _) => verdict.fault(0, "no first line", ""),
        (Some(_), None) => {}
    }
    verdict
}

/// One line against what must follow from those before.
fn check(
    line: &Line<'_>,
    expect: &mut Option<Expect>,
    losses: &mut Vec<String>,
) -> Result<(), String> {
    let nonce = line.hex("nonce")?;
    let Some(expect) = expect else {
        if line.kind != "BOOT" {
            return Err("not the first line".into());
        }
        let mut first = Expect::new(nonce);
        first.ring = line
            .get("ring")
            .ok()
            .and_then(|rings| rings.split(',').next()?.parse().ok())
            .unwrap_or(0);
        *expect = Some(first);
        return Ok(());
    };
    if nonce != expect.nonce {
        return Err(format!("another nonce than {:016x}", expect.nonce));
    }
    match line.kind {
        "L" => {}
        "OFF" => {
            expect.off = true;
            return Ok(());
        }
        "BOOT" => return Err("booted again".into()),
        kind => return Err(format!("unknown line {kind:?}")),
    }
    let n = line.number("n")?;
    let want = expect.next;
    // Later lines are counted from here, so that one gap is one fault.
    expect.next = n + 1;
    expect.live_sum = live_sum(expect.nonce, n);
    match n {
        _ if n == want => {}
        _ if n < want => return Err(format!("n={n} again, {want} expected")),
        _ => return Err(format!("{} lines lost before n={n}", n - want)),
    }
    if line.hex("sum")? != expect.pattern_sum {
        return Err(format!("sum is not {:016x}", expect.pattern_sum));
    }
    if line.hex("live")? != expect.live_sum {
        return Err(format!("live is not {:016x}", expect.live_sum));
    }
    for key in ["verify", "disk"] {
        let word = line.get(key)?;
        if word != "ok" && !(key == "disk" && word == "-") {
            return Err(format!("{key}={word}"));
        }
    }
    let seq = line.get("seq")?;
    if seq != "-" && seq != n.to_string() {
        return Err(format!("seq={seq}"));
    }
    check_time(line, expect)?;
    // "ok:12,stale1:34" -> "ok,stale1": said again only when it changes.
    let simd = line.get("simd")?;
    let states: Vec<&str> = simd
        .split(',')
        .map(|cpu| cpu.split(':').next().unwrap_or_default())
        .collect();
    let states = states.join(",");
    if states.contains("stale") && states != expect.stale {
        losses.push(format!("vector registers at n={n}: {simd}"));
        expect.stale = states;
    }
    Ok(())
}

/// What the guest says of its clocks, and what the lines themselves show.
fn check_time(line: &Line<'_>, expect: &mut Expect) -> Result<(), String> {
    let clocks = line.get("clock")?;
    if !clocks.starts_with("ok:") {
        return Err(format!("the guest's clocks went back: {clocks}"));
    }
    for (name, last) in [("t", &mut expect.milliseconds), ("wall", &mut expect.wall)] {
        let now = line.number(name)?;
        if now < *last {
            return Err(format!("{name}: time went back from {last} to {now}"));
        }
        *last = now;
    }
    Ok(())
}

impl Expect {
    fn new(nonce: u64) -> Self {
        let words = RUN_BYTES / 8;
        let pattern_sum = (0..PATTERN_BYTES / RUN_BYTES).fold(0u64, |sum, run| {
            sum.wrapping_add(splitmix(nonce, run).wrapping_mul(words))
        });
        Self {
            nonce,
            pattern_sum,
            next: 1,
            live_sum: 0,
            milliseconds: 0,
            wall: 0,
            stale: String::new(),
            off: false,
            ring: 0,
        }
    }
}

/// Each of the newest pages holds the number of the line that wrote it.
fn live_sum(nonce: u64, n: u64) -> u64 {
    let first = (n + 1).saturating_sub(LIVE_PAGES).max(1);
    (first..=n).fold(0u64, |sum, line| {
        sum.wrapping_add(splitmix(nonce ^ LIVE_SALT, line))
    })
}

/// The disk as the host left it: block `seq` is written at `seq` modulo the
/// number of blocks before line `seq` is printed.
fn check_disk(expect: &Expect, disk: &[u8], verdict: &mut Verdict) {
    let all = (disk.len() / BLOCK) as u64;
    let blocks = match expect.ring {
        0 => all,
        ring => ring.min(all),
    };
    let last = expect.next - 1;
    if blocks == 0 || last == 0 {
        return;
    }
    let oldest = (last + 1).saturating_sub(blocks).max(1);
    for seq in oldest..=last {
        let at = (seq % blocks) as usize * BLOCK;
        let block = &disk[at..at + BLOCK];
        // The next blocks of the ring may be on their way already.
        let newer = seq + blocks <= last + 2 && is_block(block, expect.nonce, seq + blocks);
        if !newer && !is_block(block, expect.nonce, seq) {
            verdict.fault(
                0,
                format!("the disk's image does not hold block {seq} of {oldest}..{last}"),
                "",
            );
        }
    }
}

fn is_block(block: &[u8], nonce: u64, seq: u64) -> bool {
    block.chunks_exact(8).enumerate().all(|(i, word)| {
        let want = match i {
            0 => nonce,
            1 => seq,
            _ => splitmix(nonce ^ seq, i as u64 / 8),
        };
        word == want.to_le_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::super::line::checksum;
    use super::*;

    const NONCE: u64 = 0x0123_4567_89ab_cdef;

    /// A guest's output, written down by hand, not by the guest's program.
    fn output(lines: std::ops::Range<u64>) -> Vec<String> {
        let mut all = vec![seal(format!("BOOT nonce={NONCE:016x}"))];
        let sum = Expect::new(NONCE).pattern_sum;
        for n in lines {
            all.push(seal(format!(
                "L nonce={NONCE:016x} n={n} sum={sum:016x} live={:016x} verify=ok seq=- disk=- \
                 simd=ok:{n} clock=ok:{n} wall={} t={}",
                live_sum(NONCE, n),
                1_700_000_000_000 + n * 100,
                n * 100
            )));
        }
        all
    }

    fn seal(text: String) -> String {
        format!("{text} crc={:08x}\n", checksum(text.as_bytes()))
    }

    fn judge(lines: &[String], before: usize) -> Verdict {
        let after = lines.concat();
        guest(
            lines[..before].concat().as_bytes(),
            after.as_bytes(),
            None,
            5,
        )
    }

    #[test]
    fn a_whole_output_is_good() {
        let verdict = judge(&output(1..40), 21);
        assert!(verdict.is_good(), "{verdict}");
        assert_eq!((verdict.last_before, verdict.last_after), (20, 39));
        assert!(verdict.lines_before[4].contains(" n=20 "));
        assert!(verdict.lines_after[0].contains(" n=21 "));
    }

    #[test]
    fn noise_before_the_first_line_and_a_cut_last_line_are_good() {
        let text = format!("SeaBIOS\r\n{}L nonce=01", output(1..30).concat());
        assert!(guest(b"SeaBIOS\r\n", text.as_bytes(), None, 5).is_good());
    }

    #[test]
    fn a_power_down_ends_it_and_a_new_boot_is_seen() {
        let mut lines = output(1..40);
        lines.push(seal(format!("OFF nonce={NONCE:016x}")));
        lines.push("[   83.107074] reboot: Power down\r\n".into());
        let verdict = judge(&lines, 10);
        assert!(verdict.is_good(), "{verdict}");
        lines.extend(output(1..3));
        assert!(!judge(&lines, 10).is_good());
    }

    #[test]
    fn a_lost_line_is_seen() {
        let mut lines = output(1..40);
        lines.remove(25);
        let verdict = judge(&lines, 10);
        assert_eq!(verdict.faults.len(), 1, "{verdict}");
        assert!(verdict.faults[0].what.contains("1 lines lost before n=26"));
    }

    #[test]
    fn a_doubled_line_is_seen() {
        let mut lines = output(1..40);
        lines.insert(25, lines[25].clone());
        let verdict = judge(&lines, 10);
        assert!(verdict.faults[0].what.contains("again"), "{verdict}");
    }

    #[test]
    fn a_doubled_character_is_seen() {
        let mut lines = output(1..40);
        lines[25].insert(10, '8');
        let verdict = judge(&lines, 10);
        assert!(verdict.faults[0].what.contains("torn"), "{verdict}");
    }

    #[test]
    fn a_lost_character_and_a_lost_newline_are_seen() {
        for at in [12, output(1..40)[25].len() - 1] {
            let mut lines = output(1..40);
            lines[25].remove(at);
            assert!(!judge(&lines, 10).is_good(), "at {at}");
        }
    }

    #[test]
    fn a_kernel_message_between_lines_is_seen() {
        let mut lines = output(1..40);
        lines.insert(30, "watchdog: BUG: soft lockup\n".into());
        assert!(!judge(&lines, 10).is_good());
    }

    #[test]
    fn a_second_boot_is_seen() {
        let mut lines = output(1..40);
        lines.extend(output(1..40));
        assert!(!judge(&lines, 40).is_good());
    }

    #[test]
    fn damaged_memory_is_seen_even_if_the_guest_does_not_say_so() {
        let mut lines = output(1..40);
        let text = lines[25].split(" crc=").next().unwrap().to_owned();
        let sum = format!("{:016x}", Expect::new(NONCE).pattern_sum);
        lines[25] = seal(text.replace(&sum, "00000000deadbeef"));
        let verdict = judge(&lines, 10);
        assert!(verdict.faults[0].what.contains("sum is not"), "{verdict}");
    }

    #[test]
    fn a_rolled_back_page_is_seen() {
        let mut lines = output(1..400);
        let text = lines[350].split(" crc=").next().unwrap().to_owned();
        let [now, older] = [350, 349].map(|n| format!("live={:016x}", live_sum(NONCE, n)));
        lines[350] = seal(text.replace(&now, &older));
        let verdict = judge(&lines, 10);
        assert!(verdict.faults[0].what.contains("live is not"), "{verdict}");
    }

    #[test]
    fn a_rolled_back_output_is_seen() {
        let lines = output(1..40);
        let before = lines[..30].concat();
        let after = lines[..20].concat();
        let verdict = guest(before.as_bytes(), after.as_bytes(), None, 0);
        assert!(!verdict.is_good());
    }

    #[test]
    fn silence_after_the_restore_is_seen() {
        let verdict = judge(&output(1..40), 38);
        assert!(verdict.faults[0].what.contains("new lines"), "{verdict}");
    }

    #[test]
    fn time_that_goes_back_is_seen() {
        let mut lines = output(1..40);
        let text = lines[25].split(" crc=").next().unwrap().to_owned();
        for (now, back) in [
            ("t=2500", "t=1"),
            ("wall=1700000002500", "wall=1699999999999"),
        ] {
            lines[25] = seal(text.replace(now, back));
            let verdict = judge(&lines, 10);
            assert!(verdict.faults[0].what.contains("time went back"));
        }
    }

    #[test]
    fn clocks_of_which_the_guest_says_that_they_went_back_are_a_fault() {
        let mut lines = output(1..40);
        let text = lines[25].split(" crc=").next().unwrap().to_owned();
        lines[25] = seal(text.replace("clock=ok:25", "clock=mono-17@0>1"));
        let verdict = judge(&lines, 10);
        assert!(verdict.faults[0].what.contains("mono-17@0>1"), "{verdict}");
    }

    #[test]
    fn stale_registers_are_said_and_are_no_fault() {
        let mut lines = output(1..40);
        for line in &mut lines[25..] {
            let text = line.split(" crc=").next().unwrap().to_owned();
            *line = seal(text.replace("simd=ok", "simd=stale1"));
        }
        let verdict = judge(&lines, 10);
        assert!(verdict.is_good());
        assert_eq!(verdict.losses.len(), 1);
        assert_eq!(verdict.word(), "stale");
    }

    #[test]
    fn a_disk_that_lost_its_newest_block_is_seen() {
        let mut disk = vec![0u8; 16 * BLOCK];
        for seq in 1..40u64 {
            let at = (seq % 16) as usize * BLOCK;
            for (i, word) in disk[at..at + BLOCK].chunks_exact_mut(8).enumerate() {
                let value = match i {
                    0 => NONCE,
                    1 => seq,
                    _ => splitmix(NONCE ^ seq, i as u64 / 8),
                };
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
        let text = output(1..40).concat();
        let lines = output(1..40);
        let before = lines[..20].concat();
        let good = guest(before.as_bytes(), text.as_bytes(), Some(&disk), 5);
        assert!(good.is_good(), "{good}");
        disk[(39 % 16) * BLOCK + 100] ^= 1;
        let bad = guest(before.as_bytes(), text.as_bytes(), Some(&disk), 5);
        assert!(bad.faults[0].what.contains("block 39"), "{bad}");
    }
}

//! The ordinary program's lines, its log and its mapped file.

use super::Verdict;
use super::line::{Line, beginning, splitmix};

/// Items that the program makes for each tick of its timer.
const BATCH: u64 = 8;
/// Ticks between two signals that it sends itself.
const SIGNAL_TICKS: u64 = 10;

/// What must hold from line to line.
struct Expect {
    nonce: u64,
    next: u64,
    /// Last `consumed`, with the sum of all results up to it.
    consumed: (u64, u64),
    done: u64,
    map: u64,
}

/// Judges the program: `before` is what was seen of its output up to the
/// crash, `after` the whole of it at the end, `log` and `map` its files.
#[must_use]
pub fn process(before: &[u8], after: &[u8], log: &[u8], map: &[u8], new_lines: usize) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.compare_beginning(before, after);
    verdict.keep_lines(before, after);
    if beginning(after) != Some(0) {
        verdict.fault(1, "the output does not begin with its first line", "");
        return verdict;
    }
    let seen_lines = before.iter().filter(|byte| **byte == b'\n').count();
    let mut expect: Option<Expect> = None;
    let mut lines: Vec<&[u8]> = after.split(|byte| *byte == b'\n').collect();
    // What follows the last newline was cut off when the host went down.
    lines.pop();
    for (i, raw) in lines.iter().enumerate() {
        let text = String::from_utf8_lossy(raw);
        let checked = Line::parse(&text).and_then(|line| check(&line, &mut expect));
        if let Err(what) = checked {
            verdict.fault(i + 1, what, &text);
        }
        let last = expect.as_ref().map_or(0, |e| e.next - 1);
        if i < seen_lines {
            verdict.last_before = last;
        }
        verdict.last_after = last;
    }
    verdict.compare_numbers(new_lines);
    if let Some(expect) = &expect {
        check_log(expect, log, &mut verdict);
        check_map(expect, map, &mut verdict);
    }
    verdict
}

fn check(line: &Line<'_>, expect: &mut Option<Expect>) -> Result<(), String> {
    let nonce = line.hex("nonce")?;
    let Some(expect) = expect else {
        if line.kind != "BOOT" {
            return Err("not the first line".into());
        }
        *expect = Some(Expect {
            nonce,
            next: 1,
            consumed: (0, 0),
            done: 0,
            map: 0,
        });
        return Ok(());
    };
    if nonce != expect.nonce {
        return Err(format!("another nonce than {:016x}", expect.nonce));
    }
    if line.kind != "P" {
        return Err(format!("unexpected line {:?}", line.kind));
    }
    let n = line.number("n")?;
    let want = expect.next;
    expect.next = n + 1;
    match n {
        _ if n == want => {}
        _ if n < want => return Err(format!("n={n} again, {want} expected")),
        _ => return Err(format!("{} lines lost before n={n}", n - want)),
    }
    for key in ["heap", "order"] {
        let word = line.get(key)?;
        if word != "ok" {
            return Err(format!("{key}={word}"));
        }
    }
    let [produced, worked, consumed, done, map] =
        ["produced", "worked", "consumed", "done", "map"].map(|key| line.number(key));
    let (produced, worked, consumed, done, map) = (produced?, worked?, consumed?, done?, map?);
    // A tick's items are made after its line.
    let asked = (n - 1) * BATCH;
    // Each is counted after the item is handed on, so the next one's count can
    // be one ahead.
    if produced > asked || worked > produced + 1 || consumed > worked + 1 || done > consumed {
        return Err(format!("items out of nothing: only {asked} were asked for"));
    }
    // The map is counted before the line's other numbers are read.
    if map > consumed || map < expect.map || done < expect.done || consumed < expect.consumed.0 {
        return Err("a count that went back, or ahead of its source".into());
    }
    (expect.done, expect.map) = (done, map);
    let (mut at, mut sum) = expect.consumed;
    while at < consumed {
        at += 1;
        sum = sum.wrapping_add(splitmix(nonce, at));
    }
    expect.consumed = (at, sum);
    // The sum is read after the count: the consumer may have gone on.
    let said = line.hex("sum")?;
    let ahead = (at + 1..=produced.max(at) + 2).scan(sum, |s, item| {
        *s = s.wrapping_add(splitmix(nonce, item));
        Some(*s)
    });
    if !std::iter::once(sum).chain(ahead).any(|s| s == said) {
        return Err(format!("sum is not that of {consumed} items"));
    }
    // Signals are sent after a line, and the sender takes each at once.
    let sent = (n - 1) / SIGNAL_TICKS;
    for key in ["usr1", "usr2"] {
        let got = line.number(key)?;
        if got != sent {
            return Err(format!("{key}={got}, {sent} were sent"));
        }
    }
    Ok(())
}

/// Every item is in the log exactly once, in order.
fn check_log(expect: &Expect, log: &[u8], verdict: &mut Verdict) {
    let mut lines: Vec<&[u8]> = log.split(|byte| *byte == b'\n').collect();
    lines.pop();
    let mut next = 1u64;
    for raw in lines {
        let text = String::from_utf8_lossy(raw);
        let checked = Line::parse(&text).and_then(|line| {
            let (first, last) = (line.number("first")?, line.number("last")?);
            if line.kind != "A" || line.hex("nonce")? != expect.nonce {
                return Err("a foreign line".into());
            }
            if first != next || last != first + BATCH - 1 {
                return Err(format!("items {first} to {last}, {next} expected"));
            }
            let xor = (first..=last).fold(0, |x, item| x ^ splitmix(expect.nonce, item));
            if line.hex("xor")? != xor {
                return Err(format!("xor is not {xor:016x}"));
            }
            next = last + 1;
            Ok(())
        });
        if let Err(what) = checked {
            verdict.fault(0, format!("log: {what}: {text:?}"), "");
            return;
        }
    }
    let consumed = expect.consumed.0;
    if next - 1 < consumed / BATCH * BATCH {
        verdict.fault(
            0,
            format!(
                "the log ends at item {}, {consumed} were consumed",
                next - 1
            ),
            "",
        );
    }
}

/// Word 0 of the mapped file counts items, word 1 is the nonce.
fn check_map(expect: &Expect, map: &[u8], verdict: &mut Verdict) {
    let word = |i: usize| {
        let bytes = map.get(i * 8..i * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let (count, nonce) = (word(0), word(1));
    if nonce != Some(expect.nonce) || count.is_none_or(|count| count < expect.map) {
        verdict.fault(
            0,
            format!(
                "the mapped file holds {count:?}, the program saw {}",
                expect.map
            ),
            "",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::checksum;
    use super::*;

    const NONCE: u64 = 0xfeed_f00d_1234_5678;

    fn seal(text: String) -> String {
        format!("{text} crc={:08x}\n", checksum(text.as_bytes()))
    }

    fn sum(items: u64) -> u64 {
        (1..=items).fold(0, |s, item| s.wrapping_add(splitmix(NONCE, item)))
    }

    fn line(n: u64, items: u64, signals: u64) -> String {
        seal(format!(
            "P nonce={NONCE:016x} n={n} produced={items} worked={items} consumed={items} \
             done={items} sum={:016x} heap=ok order=ok map={items} usr1={signals} usr2={signals}",
            sum(items)
        ))
    }

    fn files(ticks: u64) -> (Vec<String>, Vec<String>, Vec<u8>) {
        let mut out = vec![seal(format!("BOOT nonce={NONCE:016x}"))];
        out.extend((1..=ticks).map(|n| line(n, (n - 1) * 8, (n - 1) / 10)));
        let log = (0..ticks - 1)
            .map(|batch| {
                let (first, last) = (batch * 8 + 1, batch * 8 + 8);
                let xor = (first..=last).fold(0, |x, item| x ^ splitmix(NONCE, item));
                seal(format!(
                    "A nonce={NONCE:016x} first={first} last={last} xor={xor:016x}"
                ))
            })
            .collect();
        let mut map = vec![0u8; 4096];
        map[..8].copy_from_slice(&((ticks - 1) * 8).to_le_bytes());
        map[8..16].copy_from_slice(&NONCE.to_le_bytes());
        (out, log, map)
    }

    fn judge(out: &[String], log: &[String], map: &[u8]) -> Verdict {
        let (all, log) = (out.concat(), log.concat());
        let before = out[..10].concat();
        process(before.as_bytes(), all.as_bytes(), log.as_bytes(), map, 10)
    }

    #[test]
    fn a_whole_run_is_good() {
        let (out, log, map) = files(45);
        let verdict = judge(&out, &log, &map);
        assert!(verdict.is_good(), "{verdict}");
        assert_eq!((verdict.last_before, verdict.last_after), (9, 45));
    }

    #[test]
    fn a_tick_lost_or_doubled_is_seen() {
        let (mut out, log, map) = files(45);
        let taken = out.remove(30);
        assert!(!judge(&out, &log, &map).is_good());
        out.insert(30, taken.clone());
        out.insert(30, taken);
        assert!(!judge(&out, &log, &map).is_good());
    }

    #[test]
    fn an_item_lost_or_doubled_in_the_log_is_seen() {
        let (out, mut log, map) = files(45);
        let taken = log.remove(20);
        assert!(!judge(&out, &log, &map).is_good());
        log.insert(20, taken.clone());
        log.insert(20, taken);
        assert!(!judge(&out, &log, &map).is_good());
    }

    #[test]
    fn an_item_consumed_twice_is_seen() {
        let (mut out, log, map) = files(45);
        let wrong = sum(232).wrapping_add(splitmix(NONCE, 232));
        let text = out[30].split(" crc=").next().unwrap().to_owned();
        out[30] = seal(text.replace(&format!("{:016x}", sum(232)), &format!("{wrong:016x}")));
        let verdict = judge(&out, &log, &map);
        assert!(verdict.faults[0].what.contains("sum"), "{verdict}");
    }

    #[test]
    fn a_lost_signal_is_seen() {
        let (mut out, log, map) = files(45);
        out[35] = line(35, 34 * 8, 2);
        let verdict = judge(&out, &log, &map);
        assert!(verdict.faults[0].what.contains("usr1"), "{verdict}");
    }

    #[test]
    fn a_log_or_a_map_from_before_the_crash_is_seen() {
        let (out, log, map) = files(45);
        assert!(!judge(&out, &log[..20], &map).is_good());
        let (_, _, older) = files(20);
        assert!(!judge(&out, &log, &older).is_good());
    }
}

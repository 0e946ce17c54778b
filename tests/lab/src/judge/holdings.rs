//! What the stand-in VMM says of its own holdings, line by line.

use super::Verdict;
use super::line::{Line, beginning};

/// Intervals of its timers, by their order. Milliseconds.
const INTERVALS: [u64; 4] = [100, 170, 230, 410];
/// By how much a timer's ticks may lag behind the clock: the last one is read
/// at every tenth line only. Milliseconds.
const TIMER_LAG: u64 = 5_000;
/// For how long an event may have been on its way at the end; one whose edge
/// was lost stays for ever. Milliseconds.
const LONGEST_WAY: u64 = 8_000;
/// Lines that the VMM must have written since, so that an event which never
/// comes is older than that.
const ENOUGH_LINES: u64 = 100;

/// Fields that say of themselves whether what they count came right.
const SELF_CHECKED: [&str; 8] = [
    "ticks", "events", "lazy", "stream", "packets", "parcel", "once", "guards",
];

/// Judges the whole file; `before` is what was in it when the host came up
/// again.
#[must_use]
pub fn holdings(before: &[u8], after: &[u8]) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.compare_beginning(before, after);
    verdict.keep_lines(before, after);
    if beginning(after) != Some(0) {
        verdict.fault(1, "it does not begin with its first line", "");
        return verdict;
    }
    let seen = before.iter().filter(|byte| **byte == b'\n').count();
    let mut state = State::default();
    let mut lines: Vec<&[u8]> = after.split(|byte| *byte == b'\n').collect();
    // What follows the last newline was cut off when the host went down.
    lines.pop();
    for (i, raw) in lines.iter().enumerate() {
        let text = String::from_utf8_lossy(raw);
        let checked = Line::parse(&text).and_then(|line| state.check(&line));
        if let Err(what) = checked {
            verdict.fault(i + 1, what, &text);
        }
        if i < seen {
            verdict.last_before = state.n;
            state.at_the_crash = state.last.clone();
        }
        verdict.last_after = state.n;
    }
    verdict.compare_numbers(usize::try_from(ENOUGH_LINES).unwrap_or(0));
    if let Err(what) = state.end() {
        verdict.fault(lines.len(), what, "");
    }
    verdict
}

/// Numbers of one line.
#[derive(Clone, Default)]
struct Numbers {
    time: u64,
    ticks: Vec<u64>,
    /// Taken, by name.
    taken: Vec<(&'static str, u64)>,
    /// Ages of the oldest events. Milliseconds.
    ages: Vec<u64>,
}

#[derive(Default)]
struct State {
    nonce: Option<u64>,
    n: u64,
    first: Option<Numbers>,
    at_the_crash: Option<Numbers>,
    last: Option<Numbers>,
}

/// `ok:1:2` without its word, as numbers.
fn numbers(text: &str) -> Result<Vec<u64>, String> {
    text.split(':')
        .filter(|word| *word != "ok")
        .map(|word| word.parse().map_err(|_| format!("{text:?}")))
        .collect()
}

impl State {
    fn check(&mut self, line: &Line<'_>) -> Result<(), String> {
        let nonce = line.hex("nonce")?;
        let Some(first) = self.nonce else {
            self.nonce = Some(nonce);
            return match line.kind {
                "BOOT" => Ok(()),
                _ => Err("not the first line".into()),
            };
        };
        if nonce != first || line.kind != "H" {
            return Err("a foreign line".into());
        }
        let n = line.number("n")?;
        let want = self.n + 1;
        self.n = n;
        if n != want {
            return Err(format!("n={n}, {want} expected"));
        }
        for field in SELF_CHECKED {
            let word = line.get(field)?;
            if !word.starts_with("ok:") {
                return Err(format!("{field}={word}"));
            }
        }
        // The edge of what is always ready is told once in its life.
        if line.number("quiet")? != 1 {
            return Err("an edge that had been told was told again".into());
        }
        let signals = numbers(line.get("signals")?)?;
        if let [taken, sent] = signals[..]
            && (taken > sent || sent > taken + 2)
        {
            return Err(format!("{taken} signals of {sent}"));
        }
        let part = |field: &str, at: usize| -> Result<u64, String> {
            let all = numbers(line.get(field)?)?;
            all.get(at).copied().ok_or(format!("{field}: too short"))
        };
        let mut taken = Vec::new();
        for field in ["events", "lazy", "stream", "packets", "guards"] {
            taken.push((field, part(field, 0)?));
        }
        taken.push(("once", part("once", 0)?));
        let now = Numbers {
            time: line.number("t")?,
            ticks: numbers(line.get("ticks")?)?,
            taken,
            ages: vec![part("events", 2)?, part("lazy", 2)?],
        };
        if let Some(last) = &self.last {
            let back = last.taken.iter().zip(&now.taken).find(|(a, b)| a.1 > b.1);
            if now.time < last.time || back.is_some() {
                return Err(format!("went back: {back:?}"));
            }
        }
        self.first.get_or_insert_with(|| now.clone());
        self.last = Some(now);
        Ok(())
    }

    /// What only stays away is seen at the end.
    fn end(&self) -> Result<(), String> {
        let (Some(first), Some(crash), Some(last)) = (&self.first, &self.at_the_crash, &self.last)
        else {
            return Err("no lines on both sides of the crash".into());
        };
        for (i, interval) in INTERVALS.iter().enumerate() {
            let tick = |numbers: &Numbers| numbers.ticks.get(i).copied().unwrap_or(0);
            let ticked = (tick(last) - tick(first)) * interval;
            let passed = last.time - first.time;
            if ticked.abs_diff(passed) > TIMER_LAG {
                return Err(format!("timer {i} counted {ticked} ms, the clock {passed}"));
            }
        }
        for ((what, then), (_, now)) in crash.taken.iter().zip(&last.taken) {
            if now <= then {
                return Err(format!("{what} stands still since the crash, at {now}"));
            }
        }
        match last.ages.iter().find(|age| **age > LONGEST_WAY) {
            None => Ok(()),
            Some(age) => Err(format!("an event has been on its way for {age} ms")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::checksum;
    use super::*;

    fn seal(text: String) -> String {
        format!("{text} crc={:08x}\n", checksum(text.as_bytes()))
    }

    fn line(n: u64) -> String {
        let t = n * 100;
        let [a, b, c, d] = INTERVALS.map(|interval| t / interval);
        seal(format!(
            "H nonce=000000000000beef n={n} ticks=ok:{a}:{b}:{c}:{d} events=ok:{n}:{n}:0 \
             lazy=ok:{n}:{n}:400 stream=ok:{n}:{n} packets=ok:{n} parcel=ok:0 once=ok:{}:{} \
             quiet=1 signals={}:{} guards=ok:{n} t={t}",
            n / 15,
            n / 15,
            n / 20,
            n / 20
        ))
    }

    fn file(lines: u64) -> Vec<String> {
        let boot = seal("BOOT nonce=000000000000beef".into());
        std::iter::once(boot).chain((1..=lines).map(line)).collect()
    }

    fn judge(lines: &[String]) -> Verdict {
        let (all, before) = (lines.concat(), lines[..150].concat());
        holdings(before.as_bytes(), all.as_bytes())
    }

    #[test]
    fn a_whole_file_is_good() {
        let verdict = judge(&file(300));
        assert!(verdict.is_good(), "{verdict}");
        assert_eq!((verdict.last_before, verdict.last_after), (149, 300));
    }

    #[test]
    fn what_was_lost_doubled_or_stands_still_is_seen() {
        let mut lost = file(300);
        lost.remove(200);
        assert!(!judge(&lost).is_good());
        let mut doubled = file(300);
        doubled.insert(200, line(200));
        assert!(!judge(&doubled).is_good());
        let change = |from: &str, to: &str| -> Vec<String> {
            let change = |(i, text): (usize, String)| match text.split_once(" crc=") {
                Some((body, _)) if i > 160 => seal(body.replace(from, to)),
                _ => text,
            };
            file(300).into_iter().enumerate().map(change).collect()
        };
        for (from, to) in [
            ("quiet=1", "quiet=2"),
            ("stream=ok", "stream=BAD1+0"),
            ("guards=ok", "guards=BAD3"),
            (":400 ", ":90000 "),
        ] {
            assert!(!judge(&change(from, to)).is_good(), "{to}");
        }
    }

    #[test]
    fn ticks_that_the_clock_does_not_know_are_seen() {
        let mut lines = file(300);
        let body = lines[300].split(" crc=").next().unwrap().to_owned();
        lines[300] = seal(body.replace("ticks=ok:300", "ticks=ok:390"));
        let verdict = judge(&lines);
        assert!(verdict.faults[0].what.contains("timer 0"), "{verdict}");
    }
}

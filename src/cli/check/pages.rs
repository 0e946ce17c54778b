//! The pages of the dump and of each guest by their state, in numbers and per cent.

use crate::cli::table::Table;
use crate::dump::{PageCounts, PageStates};
use crate::extract::coverage::Coverage;
use serde::Serialize;

/// Pages of the whole dump.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Pages {
    pub present: u64,
    /// Known only when all pages were read; so is `corrupt`.
    pub zero: Option<u64>,
    pub filtered: u64,
    pub not_ram: u64,
    pub truncated: u64,
    pub corrupt: Option<u64>,
}

impl From<PageCounts> for Pages {
    fn from(c: PageCounts) -> Self {
        Pages {
            present: c.present,
            zero: None,
            filtered: c.filtered,
            not_ram: c.not_ram,
            truncated: c.truncated,
            corrupt: None,
        }
    }
}

impl From<PageStates> for Pages {
    fn from(s: PageStates) -> Self {
        Pages {
            present: s.present,
            zero: Some(s.zero),
            filtered: s.filtered,
            not_ram: s.not_ram,
            truncated: s.truncated,
            corrupt: Some(s.corrupt),
        }
    }
}

/// The states in the order of the columns; what is always there first.
const COLUMNS: [&str; 10] = [
    "PRESENT",
    "(ZERO)",
    "FILTERED",
    "TRUNCATED",
    "CORRUPT",
    "SWAPPED",
    "UNKNOWN",
    "ON FILE",
    "UNTOUCHED",
    "NOT RAM",
];

/// A line of the table: whose pages, and how many in each state (none: not known).
pub(super) struct Row {
    name: String,
    pages: [Option<u64>; 10],
}

impl Row {
    pub fn of_dump(p: &Pages) -> Row {
        let none = Some(0);
        Row {
            name: "the dump".into(),
            pages: [
                Some(p.present),
                p.zero,
                Some(p.filtered),
                Some(p.truncated),
                p.corrupt,
                none,
                none,
                none,
                none,
                Some(p.not_ram),
            ],
        }
    }

    pub fn of_process(name: String, c: &Coverage) -> Row {
        let pages = [
            c.present,
            c.zero,
            c.filtered,
            c.truncated,
            c.corrupt,
            c.swapped,
            c.unknown + c.elsewhere,
            c.on_file,
            c.untouched,
            c.not_ram,
        ];
        Row {
            name,
            pages: pages.map(Some),
        }
    }

    /// What the parts are parts of: all but zeros, which are among those present, and what is no
    /// memory.
    fn total(&self) -> u64 {
        let counted = |i: &usize| ![1, 9].contains(i);
        (0..10)
            .filter(counted)
            .filter_map(|i| self.pages[i])
            .fold(0, u64::saturating_add)
    }
}

/// Prints the table; a state in which no page is has no column.
pub(super) fn print(rows: &[Row]) {
    let shown: Vec<usize> = (0..COLUMNS.len())
        .filter(|&i| i == 0 || rows.iter().any(|r| r.pages[i].is_some_and(|n| n > 0)))
        .collect();
    let mut columns = vec![("PAGES", false), ("ALL", true)];
    for &i in &shown {
        columns.push((COLUMNS[i], true));
        columns.push(("", true));
    }
    let mut table = Table::new(&columns);
    for row in rows {
        let total = row.total();
        let mut cells = vec![row.name.clone(), total.to_string()];
        for &i in &shown {
            match row.pages[i] {
                // What is no memory is no part of it.
                Some(n) if COLUMNS[i] == "NOT RAM" => cells.extend([n.to_string(), String::new()]),
                Some(n) => cells.extend([n.to_string(), percent(n, total)]),
                None => cells.extend(["?".into(), String::new()]),
            }
        }
        table.row(cells);
    }
    table.print();
}

/// A share that never reads as none or all when it is not.
pub(super) fn percent(part: u64, all: u64) -> String {
    let share = part as f64 * 100.0 / all.max(1) as f64;
    match (part, share) {
        (0, _) => "0 %".into(),
        (_, ..0.05) => "<0.1 %".into(),
        _ if part == all => "100 %".into(),
        (_, 99.95..) => ">99.9 %".into(),
        _ => format!("{share:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_share_never_reads_as_none_or_all_when_it_is_not() {
        let said = [
            (0, 9),
            (1, 100_000),
            (1, 3),
            (99_999, 100_000),
            (5, 5),
            (0, 0),
        ]
        .map(|(part, all)| super::percent(part, all));
        assert_eq!(said, ["0 %", "<0.1 %", "33.3 %", ">99.9 %", "100 %", "0 %"]);
    }
}

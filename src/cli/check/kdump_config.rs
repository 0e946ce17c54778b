//! The distributions' kdump configurations: the level that they set, and the one line to change.

use serde::Serialize;

/// The level that keeps guests and processes whole, and leaves out what no one misses (zeros and
/// free pages).
pub(in crate::cli) const GOOD_LEVEL: u32 = 17;
/// Bits of the level that leave out what guests and processes need: page cache, user data.
pub(super) const HARMFUL_BITS: u32 = 2 | 4 | 8;

/// Whose kdump it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    /// Debian's and Ubuntu's kdump-tools.
    KdumpTools,
    /// kexec-tools or kdump-utils of Fedora, RHEL and their kin.
    KdumpConf,
    /// SUSE's kdump.
    Suse,
}

/// What to write where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Advice {
    /// The configuration file.
    pub file: String,
    /// The one line.
    pub line: String,
    /// What makes it count.
    pub then: String,
}

impl Tool {
    pub const ALL: [Tool; 3] = [Tool::KdumpTools, Tool::KdumpConf, Tool::Suse];

    /// By the names that a kernel has: release and version, of `uname -r` and `uname -v`.
    pub fn of_kernel(release: &str, version: &str) -> Option<Tool> {
        let has = |text: &str, words: &[&str]| words.iter().any(|w| text.contains(w));
        // "6.1.0-18-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1"; "6.8.0-51-generic",
        // "#52-Ubuntu SMP"
        if has(version, &["Debian", "Ubuntu"]) || release.ends_with("-amd64") {
            return Some(Tool::KdumpTools);
        }
        // "5.14.0-427.13.1.el9_4.x86_64", "6.9.5-200.fc40.x86_64", "6.1.79-99.167.amzn2023.x86_64"
        let marks = [
            ".el7", ".el8", ".el9", ".el1", ".fc", ".amzn", ".azl", ".cm2",
        ];
        if has(release, &marks) {
            return Some(Tool::KdumpConf);
        }
        // "5.14.21-150500.55.7-default"
        if release.ends_with("-default") || has(version, &["SUSE"]) {
            return Some(Tool::Suse);
        }
        None
    }

    pub fn file(self) -> &'static str {
        match self {
            Tool::KdumpTools => "/etc/default/kdump-tools",
            Tool::KdumpConf => "/etc/kdump.conf",
            Tool::Suse => "/etc/sysconfig/kdump",
        }
    }

    /// The line for the next crash, as it is without a configuration to build on.
    pub fn advice(self) -> Advice {
        self.read("").advice
    }

    /// What the tool makes of its configuration file.
    pub fn read(self, text: &str) -> Configured {
        match self {
            // MAKEDUMP_ARGS=${MAKEDUMP_ARGS:="-F -c -d 31"}: an empty one counts as none.
            Tool::KdumpTools => {
                let set = shell_value(text, "MAKEDUMP_ARGS").filter(|v| !v.trim().is_empty());
                let args = set.as_deref().unwrap_or("-c -d 31");
                let mut found = Configured::new(self, set.is_some(), levels(args));
                found.split = words(args).any(|w| w == "--split");
                found.packed =
                    shell_value(text, "KDUMP_COMPRESSION").filter(|v| !v.is_empty() && v != "none");
                found.advice.line = format!("MAKEDUMP_ARGS=\"{}\"", with_good_level(args));
                found
            }
            // DEFAULT_CORE_COLLECTOR of kdump-utils' kdump-lib.
            Tool::KdumpConf => {
                let set = directive(text, "core_collector");
                let line = set
                    .as_deref()
                    .unwrap_or("makedumpfile -l --message-level 7 -d 31");
                let program = words(line).next().unwrap_or("");
                let filters = program.rsplit('/').next() == Some("makedumpfile");
                // Whatever copies /proc/vmcore otherwise (cp, scp, dd) takes all of it.
                let levels = if filters { levels(line) } else { vec![0] };
                let mut found = Configured::new(self, set.is_some(), levels);
                found.split = filters && words(line).any(|w| w == "--split");
                found.advice.line = format!("core_collector {}", with_good_level(line));
                found
            }
            Tool::Suse => {
                let set = shell_value(text, "KDUMP_DUMPLEVEL").and_then(|v| v.trim().parse().ok());
                let raw = shell_value(text, "KDUMP_DUMPFORMAT")
                    .is_some_and(|f| matches!(f.as_str(), "none" | "raw"));
                let options = shell_value(text, "MAKEDUMPFILE_OPTIONS").unwrap_or_default();
                let level = if raw { 0 } else { set.unwrap_or(31) };
                let mut found = Configured::new(self, set.is_some() || raw, vec![level]);
                found.split = words(&options).any(|w| w == "--split");
                found.advice.line = format!("KDUMP_DUMPLEVEL=\"{GOOD_LEVEL}\"");
                found
            }
        }
    }

    fn reload(self) -> &'static str {
        match self {
            Tool::KdumpTools => "kdump-config reload",
            Tool::KdumpConf => "kdumpctl restart",
            Tool::Suse => "systemctl restart kdump",
        }
    }
}

/// What a configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configured {
    pub tool: Tool,
    /// It says so itself; else it is the tool's default.
    pub explicit: bool,
    /// The levels, in the order in which makedumpfile tries them when space is short.
    pub levels: Vec<u32>,
    /// The dump is written in several files.
    pub split: bool,
    /// What kdump-tools packs the whole file with.
    pub packed: Option<String>,
    /// What it should say.
    pub advice: Advice,
}

impl Configured {
    fn new(tool: Tool, explicit: bool, levels: Vec<u32>) -> Configured {
        Configured {
            tool,
            explicit,
            levels,
            split: false,
            packed: None,
            advice: Advice {
                file: tool.file().to_owned(),
                line: String::new(),
                then: tool.reload().to_owned(),
            },
        }
    }

    /// Some dump that it may write lacks what guests need.
    pub fn is_harmful(&self) -> bool {
        self.levels.iter().any(|l| l & HARMFUL_BITS != 0)
    }

    /// The levels as makedumpfile takes them.
    pub fn level_text(&self) -> String {
        let levels: Vec<String> = self.levels.iter().map(u32::to_string).collect();
        levels.join(",")
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
}

/// Where in a makedumpfile command the level stands: the index of the word, and of its first
/// character there. Options may stand together ("-cd31"), and the last counts.
fn level_place(args: &[&str]) -> Option<(usize, usize)> {
    let mut place = None;
    let mut index = 0;
    while let Some(word) = args.get(index) {
        let options = word.strip_prefix('-').filter(|o| !o.starts_with('-'));
        for (at, option) in options.unwrap_or("").char_indices() {
            // Those that take an argument, attached or as the next word.
            if "bdgix".contains(option) {
                let behind = at + 2;
                let here = if behind < word.len() {
                    (index, behind)
                } else {
                    index += 1;
                    (index, 0)
                };
                if option == 'd' && here.0 < args.len() {
                    place = Some(here);
                }
                break;
            }
        }
        index += 1;
    }
    place
}

/// The levels that a makedumpfile command asks for; 0 when it asks for none.
fn levels(command: &str) -> Vec<u32> {
    let args: Vec<&str> = words(command).collect();
    let Some((index, at)) = level_place(&args) else {
        return vec![0];
    };
    let text = args.get(index).and_then(|w| w.get(at..)).unwrap_or("");
    let levels: Vec<u32> = text.split(',').filter_map(|l| l.parse().ok()).collect();
    // What makedumpfile itself would refuse leaves no dump at all, or a whole one by `cp`.
    if levels.is_empty() { vec![0] } else { levels }
}

/// kdump-tools' arguments for makedumpfile, by its configuration file, with another level.
pub(in crate::cli) fn makedump_args(text: &str, level: u32) -> String {
    let set = shell_value(text, "MAKEDUMP_ARGS").filter(|v| !v.trim().is_empty());
    with_level(set.as_deref().unwrap_or("-c -d 31"), level)
}

/// The same command with the level that keeps guests whole.
fn with_good_level(command: &str) -> String {
    with_level(command, GOOD_LEVEL)
}

fn with_level(command: &str, level: u32) -> String {
    let args: Vec<&str> = words(command).collect();
    let mut out: Vec<String> = args.iter().map(|w| (*w).to_owned()).collect();
    match level_place(&args) {
        Some((index, at)) => {
            if let (Some(word), Some(old)) = (out.get_mut(index), args.get(index)) {
                *word = format!("{}{level}", old.get(..at).unwrap_or(""));
            }
        }
        None => out.push(format!("-d {level}")),
    }
    out.join(" ")
}

/// The value that a shell would give to a variable: the last assignment, without quotes.
fn shell_value(text: &str, name: &str) -> Option<String> {
    let joined = text.replace("\\\n", " ");
    let assignment = |line: &str| -> Option<String> {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let value = line.strip_prefix(name)?.strip_prefix('=')?;
        let mut out = String::new();
        let mut quote = None;
        for c in value.chars() {
            match quote {
                Some(q) if c == q => quote = None,
                None if c == '"' || c == '\'' => quote = Some(c),
                None if c.is_whitespace() || c == ';' || c == '#' && out.is_empty() => break,
                _ => out.push(c),
            }
        }
        Some(out)
    };
    joined.lines().rev().find_map(assignment)
}

/// The rest of the last line that begins with a word, without a comment.
fn directive(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| {
            let rest = line.trim_start().strip_prefix(name)?;
            rest.starts_with(char::is_whitespace).then_some(rest)
        })
        .map(|rest| rest.split('#').next().unwrap_or("").trim().to_owned())
        .rfind(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(tool: Tool, text: &str) -> (String, bool) {
        let found = tool.read(text);
        (found.level_text(), found.explicit)
    }

    #[test]
    fn debians_file_as_it_is_installed_says_nothing_and_means_31() {
        let installed = "# kdump-tools configuration\nUSE_KDUMP=1\nKDUMP_COREDIR=\"/var/crash\"\n\
                         #KDUMP_COMPRESSION=\n#MAKEDUMP_ARGS=\"-c -d 31\"\n";
        let found = Tool::KdumpTools.read(installed);
        assert_eq!(found.level_text(), "31");
        assert!(!found.explicit && found.is_harmful());
        assert_eq!(found.packed, None);
        assert_eq!(found.advice.line, "MAKEDUMP_ARGS=\"-c -d 17\"");
        assert_eq!(found.advice.file, "/etc/default/kdump-tools");
    }

    #[test]
    fn debians_arguments_are_read_as_the_shell_and_getopt_do() {
        let read = |text| level(Tool::KdumpTools, text);
        assert_eq!(read("MAKEDUMP_ARGS=\"-c -d 17\""), ("17".into(), true));
        assert_eq!(
            read("export MAKEDUMP_ARGS='-l -d17' # ok"),
            ("17".into(), true)
        );
        assert_eq!(read("MAKEDUMP_ARGS=\"-cd 1\""), ("1".into(), true));
        assert_eq!(
            read("MAKEDUMP_ARGS=\"-d 31\"\nMAKEDUMP_ARGS=\"-d 0\""),
            ("0".into(), true)
        );
        assert_eq!(
            read("MAKEDUMP_ARGS=\"\""),
            ("31".into(), false),
            "as ${{:=}} has it"
        );
        assert_eq!(
            read("MAKEDUMP_ARGS=\"-c\""),
            ("0".into(), true),
            "no -d: all"
        );
        assert_eq!(read("MAKEDUMP_ARGS=\"-d 17,31\""), ("17,31".into(), true));
        assert!(
            Tool::KdumpTools
                .read("MAKEDUMP_ARGS=\"-d 17,31\"")
                .is_harmful()
        );
        let split =
            Tool::KdumpTools.read("MAKEDUMP_ARGS=\"--split -x -d -d 25\"\nKDUMP_COMPRESSION=xz");
        assert!(split.split);
        assert_eq!(split.packed.as_deref(), Some("xz"));
        assert_eq!(split.level_text(), "25", "-x takes the first -d for a file");
        assert_eq!(split.advice.line, "MAKEDUMP_ARGS=\"--split -x -d -d 17\"");
    }

    #[test]
    fn the_level_of_the_moment_takes_the_place_of_the_configured_one() {
        let args = |text| makedump_args(text, 31);
        assert_eq!(args(""), "-c -d 31");
        assert_eq!(args("MAKEDUMP_ARGS=\"-l -d 17\"\n"), "-l -d 31");
        assert_eq!(args("MAKEDUMP_ARGS=-F"), "-F -d 31");
        assert_eq!(makedump_args("MAKEDUMP_ARGS='-cd31'", GOOD_LEVEL), "-cd17");
    }

    #[test]
    fn red_hats_file() {
        let read = |text| level(Tool::KdumpConf, text);
        let installed = "auto_reset_crashkernel yes\npath /var/crash\n\
                         core_collector makedumpfile -l --message-level 7 -d 31\n";
        assert_eq!(read(installed), ("31".into(), true));
        assert_eq!(
            Tool::KdumpConf.read(installed).advice.line,
            "core_collector makedumpfile -l --message-level 7 -d 17"
        );
        assert_eq!(read("path /var/crash\n"), ("31".into(), false));
        assert_eq!(
            read("#core_collector makedumpfile -d 0"),
            ("31".into(), false)
        );
        assert_eq!(
            read("core_collector cp --sparse=always"),
            ("0".into(), true)
        );
        assert_eq!(read("core_collector scp"), ("0".into(), true));
        assert_eq!(
            read("core_collector makedumpfile -F -c # -d 31"),
            ("0".into(), true)
        );
        assert_eq!(
            read("core_collector /usr/sbin/makedumpfile -zd 17"),
            ("17".into(), true)
        );
    }

    #[test]
    fn suses_file() {
        let read = |text| level(Tool::Suse, text);
        assert_eq!(
            read("KDUMP_DUMPLEVEL=\"31\"\nKDUMP_DUMPFORMAT=\"lzo\""),
            ("31".into(), true)
        );
        assert_eq!(read("KDUMP_DUMPLEVEL=\"17\""), ("17".into(), true));
        assert_eq!(read("KDUMP_DUMPLEVEL=\"\""), ("31".into(), false));
        assert_eq!(
            read("KDUMP_DUMPLEVEL=\"31\"\nKDUMP_DUMPFORMAT=\"none\""),
            ("0".into(), true)
        );
        assert_eq!(Tool::Suse.advice().line, "KDUMP_DUMPLEVEL=\"17\"");
    }

    #[test]
    fn a_kernel_says_whose_it_is() {
        let of = Tool::of_kernel;
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)";
        assert_eq!(of("6.1.0-18-cloud-amd64", debian), Some(Tool::KdumpTools));
        let ubuntu = "#52-Ubuntu SMP PREEMPT_DYNAMIC Thu Dec 5 13:09:44 UTC 2024";
        assert_eq!(of("6.8.0-51-generic", ubuntu), Some(Tool::KdumpTools));
        let plain = "#1 SMP PREEMPT_DYNAMIC";
        assert_eq!(
            of("5.14.0-427.13.1.el9_4.x86_64", plain),
            Some(Tool::KdumpConf)
        );
        assert_eq!(of("6.12.0-55.el10.x86_64", plain), Some(Tool::KdumpConf));
        assert_eq!(of("6.9.5-200.fc40.x86_64", plain), Some(Tool::KdumpConf));
        assert_eq!(of("5.14.21-150500.55.7-default", plain), Some(Tool::Suse));
        assert_eq!(of("6.18.44", plain), None);
    }
}

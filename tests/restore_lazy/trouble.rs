//! What goes wrong while memory arrives: nobody ever sees a wrong page, and somebody says so.

use super::*;
use std::collections::BTreeSet;

/// A pager that is killed takes those along whose memory it had: they never see a wrong page.
#[test]
fn without_its_pager_it_ends() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (living, taken, before) = taken("pager-killed");
    let slow = Slow {
        memory: &taken.memory,
        pause: Duration::from_millis(5),
        damaged: None,
    };
    let (killed, pager) = go(&taken.dataset, &slow);
    living.await_ticks(before + 3);
    let figures = pager.figures();
    assert!(figures.done < figures.total, "{figures:?}");
    let mut log = kernel_log();
    task_control::kill(pager.pid(), libc::SIGKILL).expect("kills the pager");
    wait_for("it ends", &living, 10, || !lives(killed.0));
    wait_for("the guardian ends", &living, 10, || {
        !lives(pager.guardian())
    });
    match pager.wait(|_| true) {
        Arrival::Stopped(why) => assert!(why.contains("killed by signal 9"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(!living.log().contains("BAD"), "{}", living.log());
    let said = read_log(&mut log);
    assert!(
        said.contains(&format!("vmrestore: pid {} (lazy) was ended", killed.0)),
        "{said}"
    );
}

/// Its pager and its guardian killed in one instant: it waits, and never sees a wrong page. Who waits for
/// the pager ends it.
#[test]
fn without_anybody_it_waits() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    for round in 0..4 {
        let (living, taken, before) = taken("both-killed");
        let forks = round % 2 == 1;
        if forks {
            fs::write(living.dir.join("go"), "").expect("go");
        }
        let slow = Slow {
            memory: &taken.memory,
            pause: Duration::from_millis(5),
            damaged: None,
        };
        let (killed, pager) = go(&taken.dataset, &slow);
        wait_for("it runs", &living, 20, || match forks {
            true => living.log().contains("did fork\n"),
            false => living.ticks().len() > before,
        });
        std::thread::sleep(Duration::from_millis(70 * round));
        let figures = pager.figures();
        assert!(figures.done < figures.total, "{figures:?}");
        let both = [pager.pid(), pager.guardian()];
        for signal in [libc::SIGSTOP, libc::SIGKILL] {
            for pid in both {
                task_control::kill(pid, signal).expect("sends it");
            }
        }
        wait_for("they end", &living, 10, || !both.into_iter().any(lives));
        wait_for("it waits", &living, 30, || {
            let before = living.log().len();
            std::thread::sleep(Duration::from_millis(500));
            living.log().len() == before
        });
        assert!(lives(killed.0), "{}", living.log());
        assert!(!living.log().contains("BAD"), "{}", living.log());
        let mut log = kernel_log();
        match pager.wait(|_| true) {
            Arrival::Stopped(why) => assert!(why.contains("killed by signal 9"), "{why}"),
            other => panic!("{other:?}"),
        }
        wait_for("it ends", &living, 10, || !lives(killed.0));
        let said = read_log(&mut log);
        assert!(
            said.contains(&format!("vmrestore: pid {} (lazy) was ended", killed.0)),
            "{said}"
        );
        assert!(!living.log().contains("BAD"), "{}", living.log());
    }
}

/// What was read of a dump after somebody has written to it is nobody's memory.
#[test]
fn a_dump_that_changes_ends_it() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (living, taken, before) = taken("changing");
    let changing = Changing {
        memory: Slow {
            memory: &taken.memory,
            pause: Duration::from_millis(5),
            damaged: None,
        },
        when: living.dir.join("changed"),
    };
    let (killed, pager) = go(&taken.dataset, &changing);
    living.await_ticks(before + 3);
    fs::write(&changing.when, "").expect("the sign");
    match pager.wait(|figures| figures.time < Duration::from_secs(60)) {
        Arrival::Stopped(why) => assert!(why.contains("the dump was written to"), "{why}"),
        other => panic!("{other:?}"),
    }
    wait_for("it ends", &living, 10, || !lives(killed.0));
    assert!(!living.log().contains("BAD"), "{}", living.log());
}

/// Another guardian takes the place of one that was killed.
#[test]
fn a_guardian_has_a_successor() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (living, taken, before) = taken("guardian-killed");
    let slow = Slow {
        memory: &taken.memory,
        pause: Duration::from_millis(5),
        damaged: None,
    };
    let (killed, pager) = go(&taken.dataset, &slow);
    let first = pager.guardian();
    task_control::kill(first, libc::SIGKILL).expect("kills the guardian");
    wait_for("there is another", &living, 5, || pager.guardian() != first);
    assert!(lives(killed.0) && lives(pager.guardian()));
    // Which does its work.
    living.await_ticks(before + 3);
    task_control::kill(pager.pid(), libc::SIGKILL).expect("kills the pager");
    wait_for("it ends", &living, 10, || !lives(killed.0));
    wait_for("the guardian ends", &living, 10, || {
        !lives(pager.guardian())
    });
    assert!(!living.log().contains("BAD"), "{}", living.log());
}

/// A page that turns out to be damaged when the process runs already.
#[test]
fn a_damaged_page_ends_it_by_name() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (living, taken, _) = taken("damaged");
    let at = biggest(&taken).end - 77 * 4096;
    let slow = Slow {
        memory: &taken.memory,
        pause: Duration::from_micros(200),
        damaged: Some(at),
    };
    let (killed, pager) = go(&taken.dataset, &slow);
    match pager.wait(|figures| figures.time < Duration::from_secs(60)) {
        Arrival::Stopped(why) => assert!(why.contains(&format!("{at:#x}")), "{why}"),
        other => panic!("{other:?}"),
    }
    wait_for("it ends", &living, 10, || !lives(killed.0));
    assert!(!living.log().contains("BAD"), "{}", living.log());
    // One that the dump says it has not got is refused before anything starts.
    let mut dataset = taken.dataset.clone();
    let run = PageRun {
        start: biggest(&taken).start,
        count: 1,
        content: PageContent::Corrupt,
    };
    let big = biggest(&taken).start;
    for vma in &mut dataset.processes[0].mm.vmas {
        if vma.start == big {
            vma.pages = vec![run];
        }
    }
    let error = prepare(&dataset, &taken.memory, &LAZY).expect_err("a damaged page");
    assert!(
        matches!(error, RestoreError::PagesMissing { .. }),
        "{error}"
    );
}

/// Dropped instead of resumed, or when a step behind it fails.
#[test]
fn a_failure_leaves_nothing() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (_living, taken, _) = taken("given-up");
    // Of other tests, of which nobody asks any more.
    let others = children();
    let prepared = prepare(&taken.dataset, &taken.memory, &LAZY).expect("prepared");
    let pid = prepared.processes()[0].pid;
    let pager = prepared.arriving().pager.as_ref().expect("a pager");
    let (pager, guardian) = (pager.pid(), pager.guardian());
    assert!(lives(pid) && lives(pager) && lives(guardian));
    let mut log = kernel_log();
    drop(prepared);
    let begin = Instant::now();
    while lives(pager) || lives(guardian) || lives(pid) {
        assert!(begin.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!read_log(&mut log).contains("was ended"));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let mut dataset = taken.dataset.clone();
    let log = dataset.files.iter_mut().find(|f| f.path.ends_with("/log"));
    log.expect("its log").path = "/nowhere/at/all".into();
    let error = prepare(&dataset, &taken.memory, &LAZY).expect_err("no such file");
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    let left: Vec<_> = children().difference(&others).copied().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// PIDs of this process's children, ended ones among them.
fn children() -> BTreeSet<i32> {
    let tasks = fs::read_dir("/proc/self/task").expect("tasks").flatten();
    tasks
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default())
        .flat_map(|pids| {
            let pids = pids
                .split_whitespace()
                .map(|pid| pid.parse().expect("a PID"));
            pids.collect::<Vec<i32>>()
        })
        .collect()
}

use super::*;
use std::collections::BTreeMap;

/// A process: PID, parent, group, session.
type Line = (i32, i32, i32, i32);

fn dataset(lines: &[Line]) -> Dataset {
    let zero = "0x0";
    let mm = serde_json::json!({
        "vmas": [], "start_code": zero, "end_code": zero, "start_data": zero, "end_data": zero,
        "start_brk": zero, "brk": zero, "start_stack": zero, "arg_start": zero, "arg_end": zero,
        "env_start": zero, "env_end": zero, "auxv": [], "exe": null, "exe_path": null,
        "vdso": zero, "def_flags": zero, "dumpable": 1, "thp_disabled": false, "oom_score_adj": 0,
    });
    let processes: Vec<_> = lines
        .iter()
        .map(|(pid, ppid, pgid, sid)| {
            serde_json::json!({
                "pid": pid, "ns_pid": pid, "ppid": ppid, "pgid": pgid, "sid": sid, "comm": "p",
                "cmdline": [], "mm": mm, "threads": [], "fds": [],
                "fs": {"cwd": "/", "root": "/", "umask": 0}, "rlimits": [], "sigactions": [],
                "pending": [], "itimers": [], "posix_timers": [], "child_subreaper": false,
                "stopped": false,
            })
        })
        .collect();
    let dataset = serde_json::json!({
        "schema_version": 1, "crash_id": "c", "host": {"release": "", "version": "",
        "hostname": "", "realtime_ns": 0, "monotonic_ns": 0, "boottime_ns": 0, "tsc_khz": 0,
        "tsc": 0}, "processes": processes, "files": [], "pipes": [], "inodes": [],
        "shared_memory": [], "vms": [], "fidelity": [],
    });
    serde_json::from_value(dataset).expect("a dataset")
}

/// Does what a kernel does, and gives each process's parent and session: by
/// PID, 0 for whoever makes the roots. `None`: it went astray.
fn played(plan: &Plan) -> Option<BTreeMap<i32, (i32, i32)>> {
    let mut made: BTreeMap<i32, (i32, i32)> = BTreeMap::new();
    let pid = |node: usize| plan.nodes[node].pid;
    for step in &plan.steps {
        match *step {
            Step::Make {
                node,
                maker,
                astray,
                ..
            } => {
                let wanted = plan.nodes[node].parent.map_or(0, pid);
                let (parent, session) = match maker {
                    Maker::Parent if wanted == 0 => (0, 0),
                    Maker::Parent => (wanted, made[&wanted].1),
                    Maker::Sibling(by) => made[&pid(by)],
                    Maker::Adopted(by) => {
                        // Up to the one that adopts.
                        let mut at = pid(by);
                        let first = plan.nodes.iter().find(|n| n.first).map(|n| n.pid);
                        while at != wanted {
                            at = match made[&at].0 {
                                0 if first == Some(wanted) => wanted,
                                above => above,
                            };
                        }
                        (wanted, made[&pid(by)].1)
                    }
                };
                assert_eq!(parent, wanted, "{step:?}");
                assert_eq!(made.insert(pid(node), (parent, session)), None);
                if astray {
                    return None;
                }
            }
            Step::LeadSession(node) => {
                made.get_mut(&pid(node)).expect("it is made").1 = pid(node);
            }
        }
    }
    assert_eq!(made.len(), plan.nodes.len());
    Some(made)
}

fn comes_out(lines: &[Line]) {
    let plan = plan(&dataset(lines), &HashSet::new(), false).expect("a plan");
    let made = played(&plan).expect("nobody goes astray");
    let known: Vec<i32> = lines.iter().map(|l| l.0).collect();
    for (pid, ppid, pgid, sid) in lines {
        let parent = if known.contains(ppid) { *ppid } else { 0 };
        assert_eq!(made[pid], (parent, *sid), "{pid} of {lines:?}");
        // Its group is led by somebody of its session.
        assert_eq!(made[pgid].1, *sid, "the group of {pid} of {lines:?}");
    }
}

#[test]
fn each_is_the_child_of_its_parent_in_its_session() {
    // A shell, a pipeline of three with its own group, and one in the background.
    comes_out(&[
        (10, 1, 10, 10),
        (11, 10, 11, 10),
        (12, 10, 11, 10),
        (13, 10, 13, 10),
    ]);
    // The same pipeline without its shell, whose PID nobody has now.
    comes_out(&[(11, 10, 11, 10), (12, 10, 11, 10), (13, 10, 11, 10)]);
    // The first of the pipeline has ended.
    comes_out(&[(10, 1, 10, 10), (12, 10, 11, 10), (13, 10, 11, 10)]);
    // A daemon that forked before it made its session.
    comes_out(&[
        (10, 1, 10, 10),
        (20, 10, 20, 20),
        (21, 20, 10, 10),
        (22, 20, 20, 20),
    ]);
    // An orphan of a dead session that a subreaper adopted.
    comes_out(&[(10, 1, 10, 10), (31, 10, 30, 30), (32, 10, 32, 30)]);
    // An orphan of a living session below the one that adopted it.
    comes_out(&[
        (10, 1, 10, 10),
        (20, 10, 20, 20),
        (30, 20, 30, 30),
        (31, 10, 30, 30),
    ]);
    // The same where init adopted it.
    comes_out(&[(20, 1, 20, 20), (30, 20, 30, 30), (31, 1, 31, 30)]);
    // Sessions below sessions, deep.
    let deep: Vec<Line> = (0..50)
        .map(|n| (100 + n, 99 + n, 100 + n / 2 * 2, 100 + n / 2 * 2))
        .collect();
    comes_out(&deep);
}

#[test]
fn who_cannot_have_a_leader_leads() {
    let lines = [(11, 10, 11, 10), (12, 10, 11, 10), (13, 10, 9, 10)];
    let plan = plan(&dataset(&lines), &HashSet::from([9, 10]), false).expect("a plan");
    assert_eq!(plan.nodes.len(), 3);
    let made = played(&plan).expect("nobody goes astray");
    assert!(made.values().all(|(_, sid)| *sid == 11), "{made:?}");
    assert!(plan.nodes.iter().all(|n| n.pgid == 11 || n.pgid == 13));
}

#[test]
fn the_first_of_a_pid_namespace_is_made_first() {
    // An init whose session was another's outside, with children; somebody who came in from outside
    // and is listed before it; an orphan of that one's session, which init adopted.
    let mut all = dataset(&[
        (30, 5, 30, 30),
        (20, 4, 4, 4),
        (21, 20, 21, 21),
        (22, 20, 4, 4),
        (31, 20, 30, 30),
    ]);
    for (process, inner) in all.processes.iter_mut().zip([9, 1, 2, 3, 10]) {
        process.ns_pid = inner;
    }
    let plan = plan(&all, &HashSet::new(), true).expect("a plan");
    let first = Step::Make {
        node: 1,
        maker: Maker::Parent,
        share_files: false,
        share_fs: false,
        astray: false,
    };
    assert_eq!(plan.steps.first(), Some(&first));
    // It leads the session whose leader nobody knows here.
    assert_eq!(plan.nodes[1].sid, 20);
    let by_it = |step: &Step| {
        matches!(
            step,
            Step::Make {
                maker: Maker::Sibling(1),
                ..
            }
        )
    };
    assert!(!plan.steps.iter().any(by_it), "{:?}", plan.steps);
    let made = played(&plan).expect("nobody goes astray");
    assert_eq!(made[&22], (20, 20));
    assert_eq!(made[&31], (20, 30));
}

#[test]
fn what_cannot_be_is_refused() {
    // Two with one PID; parents in a circle.
    for lines in [
        vec![(10, 1, 10, 10), (10, 1, 10, 10)],
        vec![(10, 11, 10, 10), (11, 10, 10, 10)],
    ] {
        let error = plan(&dataset(&lines), &HashSet::new(), false).expect_err("refused");
        assert!(matches!(error, RestoreError::Malformed { .. }), "{error}");
    }
    // One address space.
    let mut one = dataset(&[(10, 1, 10, 10), (11, 10, 10, 10)]);
    for process in &mut one.processes {
        process.kin.mm = ObjectId(5);
    }
    let error = plan(&one, &HashSet::new(), false).expect_err("refused");
    assert!(matches!(error, RestoreError::Refused { .. }), "{error}");
    one.processes[1].kin.vforked = true;
    assert!(plan(&one, &HashSet::new(), false).is_ok());
}

#[test]
fn a_table_is_shared_with_a_parent_or_a_sibling_alone() {
    let mut shared = dataset(&[(10, 1, 10, 10), (11, 10, 10, 10), (12, 10, 10, 10)]);
    let share = |dataset: &mut Dataset, pids: &[i32]| {
        for process in &mut dataset.processes {
            let yes = pids.contains(&process.pid);
            process.kin.files = ObjectId(if yes { 7 } else { 0 });
        }
    };
    let shares = |plan: &Plan, pid: i32| {
        plan.steps.iter().any(|step| match step {
            Step::Make {
                node, share_files, ..
            } => plan.nodes[*node].pid == pid && *share_files,
            Step::LeadSession(_) => false,
        })
    };
    for (pids, sharer) in [([10, 11], 11), ([11, 12], 12)] {
        share(&mut shared, &pids);
        let plan = plan(&shared, &HashSet::new(), false).expect("a plan");
        assert!(played(&plan).is_some());
        assert!(shares(&plan, sharer), "{plan:?}");
        assert_eq!(
            plan.nodes.iter().filter(|n| shares(&plan, n.pid)).count(),
            1
        );
    }
}

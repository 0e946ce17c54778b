//! What becomes of a call, by what is known of its thread.

use super::*;

fn in_call(number: u64) -> Facts {
    Facts {
        regs: UserRegs {
            orig_rax: number,
            rax: (-ENOSYS).cast_unsigned(),
            ..UserRegs::default()
        },
        ..Facts::default()
    }
}

#[test]
fn interrupted_in_user_mode() {
    let decision = decide(&in_call(u64::MAX));
    assert_eq!(decision.resume, SyscallResume::UserMode);
    assert_eq!(decision.syscall, None);
}

#[test]
fn a_sleeper_makes_its_call_again_exactly() {
    // ioctl, futex without timeout, read, epoll_wait without end
    for mut facts in [16, 202, 0, 232].map(in_call) {
        facts.regs.r10 = if facts.regs.orig_rax == 232 {
            u64::MAX
        } else {
            0
        };
        facts.moved = Moved::Nothing;
        let decision = decide(&facts);
        assert_eq!(decision.resume, SyscallResume::Reissue);
        assert_eq!(decision.report, None, "{:?}", decision.syscall);
    }
}

#[test]
fn a_result_that_is_there_is_returned() {
    let mut facts = in_call(0);
    facts.regs.rax = 512;
    assert_eq!(decide(&facts).resume, SyscallResume::Return { value: 512 });
    facts.regs.rax = (-11i64).cast_unsigned();
    assert_eq!(decide(&facts).resume, SyscallResume::Return { value: -11 });
    facts.regs.rax = (-516i64).cast_unsigned();
    assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
}

#[test]
fn a_wake_up_is_not_lost() {
    let mut facts = in_call(202);
    facts.regs.rsi = 0x80; // FUTEX_WAIT_PRIVATE
    assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
    facts.running = true;
    assert_eq!(decide(&facts).resume, SyscallResume::Return { value: 0 });
    facts.regs.rsi = 0x81; // FUTEX_WAKE_PRIVATE
    assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
}

#[test]
fn restart_syscall_becomes_what_it_was() {
    let mut facts = in_call(219);
    facts.restart_function = "hrtimer_nanosleep_restart".into();
    facts.regs.rdi = 1;
    let decision = decide(&facts);
    assert_eq!(decision.number, Some(230));
    assert_eq!(
        decision.syscall.map(|s| s.name).as_deref(),
        Some("clock_nanosleep")
    );
    facts.regs.rdi = 0x7ffc_0000_0000;
    assert_eq!(decide(&facts).number, Some(35));
    facts.restart_function = "do_restart_poll".into();
    assert_eq!(decide(&facts).number, Some(7));
    facts.restart_function = "do_no_restart_syscall".into();
    assert_eq!(decide(&facts).number, None);
}

#[test]
fn the_crash_is_not_repeated() {
    let mut facts = in_call(1);
    facts.running = true;
    facts.crashed_the_host = true;
    facts.regs.rdx = 2;
    assert_eq!(decide(&facts).resume, SyscallResume::Return { value: 2 });
}

#[test]
fn an_infinite_poll_is_exact() {
    let mut facts = in_call(7);
    facts.regs.rdx = 0xffff_ffff; // -1 in 32 bits
    assert_eq!(decide(&facts).report, None);
    assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
    facts.regs.rdx = 1000;
    assert!(decide(&facts).report.is_some(), "nothing is known of it");
}

#[test]
fn a_sleep_goes_on_with_the_time_that_was_left() {
    let mut facts = in_call(35);
    facts.regs.rdi = 0x7ffc_0000;
    facts.sleeps_ns = Some(2_500_000_000);
    let decision = decide(&facts);
    assert_eq!(decision.report, None);
    let SyscallResume::Rest {
        args,
        timespec,
        moved,
        ..
    } = decision.resume
    else {
        panic!("{decision:?}")
    };
    assert_eq!(
        (args[0], timespec, moved),
        (0x7ffc_0000, Some((0, 2, 500_000_000)), 0)
    );

    // poll, in milliseconds, rounded up; epoll_wait too.
    for (number, at) in [(7, 2), (232, 3)] {
        let mut facts = in_call(number);
        (facts.regs.rdx, facts.regs.r10) = (9000, 9000);
        facts.sleeps_ns = Some(1_000_001);
        let SyscallResume::Rest { args, timespec, .. } = decide(&facts).resume else {
            panic!()
        };
        assert_eq!((args[at], timespec), (2, None));
        // Due, but not asked not to wait.
        facts.sleeps_ns = Some(-5);
        let SyscallResume::Rest { args, .. } = decide(&facts).resume else {
            panic!()
        };
        assert_eq!(args[at], 1);
    }
    // ppoll and select: as the kernel itself would leave it.
    let mut facts = in_call(271);
    facts.regs.rdx = 0x7000;
    facts.sleeps_ns = Some(3_000_000_007);
    let left = |seconds, fraction, at| SyscallResume::ReissueLeft {
        at,
        seconds,
        fraction,
    };
    assert_eq!(decide(&facts).resume, left(3, 7, 0x7000));
    let mut facts = in_call(23);
    facts.regs.r8 = 0x7000;
    facts.sleeps_ns = Some(1_000_007_999);
    assert_eq!(decide(&facts).resume, left(1, 7, 0x7000));
    facts.sleeps_ns = Some(10);
    assert_eq!(decide(&facts).resume, left(0, 1, 0x7000));
    // A futex that waits for so long, and one that waits until then.
    let mut facts = in_call(202);
    (facts.regs.rsi, facts.regs.r10) = (0x80, 0x7000);
    facts.sleeps_ns = Some(5);
    assert!(matches!(
        decide(&facts).resume,
        SyscallResume::Rest {
            timespec: Some((3, 0, 5)),
            ..
        }
    ));
    facts.regs.rsi = 0x89;
    assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
    // One that runs may have been woken, and its timer is not its own any more.
    let mut facts = in_call(35);
    facts.regs.rdi = 0x7000;
    facts.sleeps_ns = Some(2_500_000_000);
    facts.running = true;
    assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
    assert!(decide(&facts).report.is_some());
}

#[test]
fn a_write_goes_on_behind_what_was_written() {
    let mut facts = in_call(1);
    assert!(decide(&facts).report.is_some(), "nothing is known of it");
    for nothing in [Moved::Nothing, Moved::Harmless] {
        facts.moved = nothing;
        let decision = decide(&facts);
        assert_eq!(
            (decision.resume, decision.report),
            (SyscallResume::Reissue, None)
        );
    }
    let rest = SyscallResume::Rest {
        args: [1, 2, 3, 4, 5, 6],
        timespec: None,
        moved: 65_536,
        memory: None,
    };
    facts.moved = Moved::Part(Box::new(super::super::moved::Part {
        resume: rest.clone(),
        said: None,
        beside: None,
    }));
    assert_eq!(decide(&facts).resume, rest);
    assert_eq!(decide(&facts).report, None);
    // A thread that ran may have gone on behind what was found.
    facts.running = true;
    assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
    assert!(decide(&facts).report.is_some());
}

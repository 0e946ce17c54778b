//! An asynchronous I/O context comes back where it was, with the events that
//! nobody had taken, and requests that were under way are done once.
//!
//! Needs root and a C compiler, as tests/restore_live.rs.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, assert_unbroken, root_or_say_so};
use std::fs;
use vmrestore::restore::{Options, RestoreError, prepare};

#[test]
fn a_ring_is_where_it_was_with_what_was_in_it() {
    if !root_or_say_so() {
        return;
    }
    // Again and again, as each finds the ring at another place.
    for round in 0..5 {
        let mut living = Living::start("aio", "aio");
        std::thread::sleep(std::time::Duration::from_millis(37 * round));
        let pid = living.pid();
        let mut taken = living.take();
        let before = living.ticks();
        living.kill();
        let late = fs::read(living.dir.join("iocb")).expect("its address");
        let late = u64::from_ne_bytes(late.try_into().expect("8 bytes"));
        let contexts = &mut taken.dataset.processes[0].mm.aio;
        assert_eq!(contexts.len(), 1);
        assert!(contexts[0].events.0.len() >= 4 * 32, "{contexts:?}");
        contexts[0].under_way = vec![late];

        // What cannot be brought back is refused with its reason.
        let mut unknown = taken.dataset.clone();
        unknown.processes[0].mm.aio[0].unknown = Some("two are missing".into());
        match prepare(&unknown, &taken.memory, &Options::default()) {
            Err(RestoreError::Unsupported { why, .. }) => assert!(why.contains("two"), "{why}"),
            other => panic!("{other:?}"),
        }

        let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
            .expect("prepared")
            .resume()
            .expect("resumed");
        let _killed = Killed(restored[0].pid);
        let after = living.await_ticks(before.len() + 300);
        assert_unbroken(&after, pid);
        let last = living.log();
        let last = last.lines().last().unwrap_or_default().to_owned();
        assert!(last.ends_with("late 1"), "{last}");
    }
}

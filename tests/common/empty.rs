//! A dataset with nothing in it, for tests of one part.

use vmrestore::dataset::{Dataset, Host, SCHEMA_VERSION};

pub fn dataset(crash_id: &str) -> Dataset {
    Dataset {
        schema_version: SCHEMA_VERSION,
        crash_id: crash_id.into(),
        host: Host {
            release: String::new(),
            version: String::new(),
            hostname: String::new(),
            realtime_ns: 0,
            monotonic_ns: 0,
            boottime_ns: 0,
            tsc_khz: 0,
            tsc: 0,
        },
        processes: vec![],
        zombies: vec![],
        files: vec![],
        pipes: vec![],
        inodes: vec![],
        shared_memory: vec![],
        sysv: vec![],
        message_queues: vec![],
        vms: vec![],
        outside: vec![],
        swap: vec![],
        fidelity: vec![],
    }
}

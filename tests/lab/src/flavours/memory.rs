//! Guests that differ in what their memory is made of and in their size.

use super::{pc, q35};
use crate::guest::Guest;

/// See the names.
pub(super) fn flavours() -> Vec<Guest> {
    vec![
        backed("memfd", "memory-backend-memfd,share=on", ""),
        backed(
            "tmpfs",
            "memory-backend-file,mem-path=/dev/shm/{name}.ram,share=on",
            "",
        ),
        backed(
            "hugetlbfs",
            "memory-backend-file,mem-path=/dev/hugepages,share=on,prealloc=off",
            HUGE_PAGES,
        ),
        backed(
            "hugetlbfs-private",
            "memory-backend-file,mem-path=/dev/hugepages,share=off",
            HUGE_PAGES,
        ),
        backed(
            "memfd-huge",
            "memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M",
            HUGE_PAGES,
        ),
        Guest {
            memory_mib: 1024,
            board_options: ",memory-backend=ram0".into(),
            options: "-object memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=1G,id=ram0,\
                      size=1024M"
                .into(),
            host_setup: GIB_PAGE.into(),
            host_memory_mib: 5632,
            flavour: "gib-pages".into(),
            ..q35()
        },
        Guest {
            flavour: "thp".into(),
            host_setup: "echo always > /sys/kernel/mm/transparent_hugepage/enabled".into(),
            ..pc()
        },
        Guest {
            flavour: "ksm".into(),
            host_setup: "echo 1 > /sys/kernel/mm/ksm/run; \
                         echo 2000 > /sys/kernel/mm/ksm/pages_to_scan"
                .into(),
            ..pc()
        },
        // More than the host has: much of it is never touched.
        Guest {
            flavour: "5-gib".into(),
            memory_mib: 5120,
            // What describes its memory lies in the host's.
            host_memory_mib: 2304,
            host_setup: "echo 1 > /proc/sys/vm/overcommit_memory".into(),
            ..q35()
        },
        Guest {
            flavour: "8-cpus".into(),
            cpus: 8,
            memory_mib: 192,
            simd: "off".into(),
            ..q35()
        },
        Guest {
            flavour: "4-cpus".into(),
            cpus: 4,
            ..pc()
        },
    ]
}

/// Nothing that cannot be moved may lie in it: where the kernel itself lies, chance has chosen, so
/// there are several places, and what lies in them is moved first.
const GIB_PAGE: &str = "for i in 1 2 3 4 5 6 7 8; do \
     sync; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory; \
     echo 1 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages; \
     grep -q 1 /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages && break; sleep 1; done; \
     grep -q 1 /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages";

/// Enough 2 MiB pages for one guest.
const HUGE_PAGES: &str = "mkdir -p /dev/hugepages; \
     grep -q /dev/hugepages /proc/mounts || mount -t hugetlbfs none /dev/hugepages; \
     echo $(($(cat /proc/sys/vm/nr_hugepages) + 84)) > /proc/sys/vm/nr_hugepages";

/// A q35 whose memory is a backend object.
fn backed(flavour: &str, backend: &str, host_setup: &str) -> Guest {
    let guest = q35();
    Guest {
        flavour: flavour.into(),
        board_options: ",memory-backend=ram0".into(),
        options: format!("-object {},id=ram0,size={}M", backend, guest.memory_mib),
        host_setup: host_setup.into(),
        ..guest
    }
}

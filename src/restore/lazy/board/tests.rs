//! The bookkeeping, without a kernel.

use super::store::Bits;
use super::*;
use crate::dataset::{PageContent, PageRun};
use crate::sys::userfaultfd::Event;

fn run(start: u64, count: u64) -> PageRun {
    PageRun {
        start,
        count,
        content: PageContent::Frame(1),
    }
}

#[test]
fn sets_of_pages() {
    let mut bits = Bits::new(300);
    bits.set(60, 200);
    let all: Vec<u64> = (0..300)
        .filter(|p| bits.next(*p, p + 1).is_some())
        .collect();
    assert_eq!(all, (60..200).collect::<Vec<_>>());
    assert_eq!(bits.next(0, 300), Some(60));
    assert_eq!(bits.next(199, 300), Some(199));
    assert_eq!(bits.next(200, 300), None);
    assert!(bits.clear(128) && !bits.clear(128));
    assert_eq!(bits.next(128, 300), Some(129));
}

/// A board with one space, of which the userfaultfd is never used.
fn board(runs: &[PageRun]) -> Board<'_> {
    let mut board = Board::default();
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    board.add_space(Uffd::from(std::os::fd::OwnedFd::from(null)));
    board
        .stores
        .push(Store::new(runs, 0x10_0000, 256, |_| true));
    board.add_area(0, 0x10_0000, 0x20_0000, 0, 0);
    board
}

fn pending(board: &Board<'_>) -> Vec<(u64, u64)> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(order) = board.next(0, from, 1) {
        found.push((order.at, order.first));
        from = order.at + PAGE;
    }
    found
}

#[test]
fn what_is_given_back_or_unmapped_does_not_arrive() {
    let runs = [run(0x10_0000, 8)];
    let mut board = board(&runs);
    let (start, end) = (0x10_2000, 0x10_4000);
    board.apply(0, Event::Remove { start, end });
    assert_eq!(pending(&board).len(), 6);
    let (start, end) = (0x10_5000, 0x10_6000);
    board.apply(0, Event::Unmap { start, end });
    let left: Vec<u64> = pending(&board).iter().map(|p| p.1).collect();
    assert_eq!(left, [0, 1, 4, 6, 7]);
    assert_eq!(board.page_at(0, 0x10_2008), (0x10_2000, PAGE));
    assert!(board.around(0, 0x10_2008, 16).is_none());
    assert_eq!(board.left(), 5);
}

#[test]
fn what_moves_arrives_where_it_is() {
    let runs = [run(0x10_0000, 8)];
    let mut board = board(&runs);
    board.apply(
        0,
        Event::Remap {
            from: 0x10_2000,
            to: 0x50_0000,
            len: 0x2000,
        },
    );
    let moved: Vec<(u64, u64)> = pending(&board).split_off(6);
    assert_eq!(moved, [(0x50_0000, 2), (0x50_1000, 3)]);
    // Its old place is nobody's.
    assert!(board.around(0, 0x10_2000, 16).is_none());
    let order = board.around(0, 0x50_1000, 16).expect("pending");
    assert_eq!((order.at, order.first, order.count), (0x50_0000, 2, 2));
}

#[test]
fn a_fault_brings_its_neighbours() {
    let runs = [run(0x10_3000, 2), run(0x10_6000, 100)];
    let board = board(&runs);
    let order = board.around(0, 0x10_4123, 16).expect("pending");
    assert_eq!((order.first, order.count), (3, 2));
    // Not beyond an aligned stretch.
    let order = board.around(0, 0x10_8000, 16).expect("pending");
    assert_eq!((order.first, order.count), (6, 10));
    assert!(board.around(0, 0x10_5000, 16).is_none());
}

#[test]
fn huge_pages_are_whole() {
    let runs = [run(0x10_3000, 1)];
    let mut board = board(&runs);
    board.stores[0].granule = 64;
    let order = board.around(0, 0x10_9000, 16).expect("pending");
    assert_eq!((order.first, order.count), (0, 64));
    let order = board.next(0, 0, 16).expect("pending");
    assert_eq!((order.first, order.count), (0, 64));
    assert!(board.around(0, 0x14_0000, 16).is_none());
}

#[test]
fn a_child_gets_its_own_but_for_what_is_shared() {
    let runs = [run(0x10_0000, 8)];
    let mut board = board(&runs);
    let mut shared = Store::new(&runs, 0x10_0000, 256, |_| true);
    shared.shared = true;
    board.stores.push(shared);
    board.add_area(0, 0x60_0000, 0x70_0000, 1, 0);
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let uffd = Uffd::from(std::os::fd::OwnedFd::from(null));
    assert_eq!(board.apply(0, Event::Fork(uffd)), Some(1));
    let (start, end) = (0x10_0000, 0x20_0000);
    board.apply(0, Event::Remove { start, end });
    let (start, end) = (0x60_0000, 0x70_0000);
    board.apply(0, Event::Remove { start, end });
    // The parent gave its own back; of what is shared that was its mapping alone.
    assert!(board.around(0, 0x10_0000, 16).is_none());
    assert!(board.around(1, 0x10_0000, 16).is_some());
    assert!(board.around(0, 0x60_0000, 16).is_some());
    assert!(board.around(1, 0x60_0000, 16).is_some());
}

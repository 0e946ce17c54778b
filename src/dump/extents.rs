//! Which ranges of an address space stand where: sorted, disjoint extents, later ones over earlier.
//!
//! Two things are such maps: the segments of an ELF dump (physical address → file offset) and the
//! blocks of a flattened dump (offset in the dump → offset in the file).

use std::collections::BTreeMap;

/// Upper bound on the extents of one map, so that a hostile file cannot ask for more than about
/// 200 MB. makedumpfile -E cuts a run of excluded pages out only from 256 pages on, so that 1 TiB of
/// memory cannot have more than a million segments; a host of 1 GiB has some 50.
pub(super) const MAX_EXTENTS: usize = 2 << 20;

/// What an extent refers to.
pub(super) trait Target: Copy {
    /// The target of the byte `by` further on.
    fn advance(self, by: u64) -> Self;
    /// Whether an extent of `len` bytes at `self` goes on seamlessly in one at `next`.
    fn continues(self, len: u64, next: Self) -> bool;
}

/// `len` bytes from `start` on, at `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent<T> {
    pub start: u64,
    pub len: u64,
    pub target: T,
}

impl<T: Target> Extent<T> {
    /// One past the last. Cannot overflow: [`Builder::push`] has checked it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The part of the extent from `at` on; `at` must be inside it.
    fn from(&self, at: u64) -> Extent<T> {
        let skip = at - self.start;
        Extent {
            start: at,
            len: self.len - skip,
            target: self.target.advance(skip),
        }
    }
}

/// Sorted, disjoint extents.
#[derive(Debug)]
pub(super) struct ExtentMap<T> {
    extents: Vec<Extent<T>>,
}

impl<T: Target> ExtentMap<T> {
    /// The extent that holds `at`, cut so that it begins there.
    pub fn find(&self, at: u64) -> Option<Extent<T>> {
        let index = self
            .extents
            .partition_point(|e| e.start <= at)
            .checked_sub(1)?;
        let extent = self.extents[index];
        (at < extent.end()).then(|| extent.from(at))
    }

    /// All extents that touch `start..end`, cut to it.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Extent<T>> + '_ {
        let first = self.extents.partition_point(|e| e.end() <= start);
        self.extents[first..]
            .iter()
            .take_while(move |e| e.start < end)
            .map(move |e| {
                let mut piece = if e.start < start { e.from(start) } else { *e };
                piece.len = piece.len.min(end - piece.start);
                piece
            })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Extent<T>> {
        self.extents.iter()
    }

    /// One past the last address that is mapped.
    pub fn end(&self) -> u64 {
        self.extents.last().map_or(0, Extent::end)
    }
}

/// There are more extents than [`MAX_EXTENTS`], or one that wraps around.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BuildError {
    TooMany,
    Wraps,
}

/// Collects extents in any order; where two overlap, the one pushed later counts.
#[derive(Debug)]
pub(super) struct Builder<T> {
    map: BTreeMap<u64, (u64, T)>,
    /// The extent being grown; not yet in `map`.
    last: Option<Extent<T>>,
}

impl<T: Target> Builder<T> {
    pub fn new() -> Self {
        Builder {
            map: BTreeMap::new(),
            last: None,
        }
    }

    pub fn push(&mut self, start: u64, len: u64, target: T) -> Result<(), BuildError> {
        if len == 0 {
            return Ok(());
        }
        start.checked_add(len).ok_or(BuildError::Wraps)?;
        if let Some(last) = &mut self.last
            && last.end() == start
            && last.target.continues(last.len, target)
        {
            last.len += len;
            return Ok(());
        }
        self.settle()?;
        self.last = Some(Extent { start, len, target });
        Ok(())
    }

    /// Whether any address of `start..end` is mapped already.
    pub fn overlaps(&mut self, start: u64, end: u64) -> Result<bool, BuildError> {
        self.settle()?;
        let before = self.map.range(..end).next_back();
        Ok(before.is_some_and(|(&at, &(len, _))| at + len > start))
    }

    /// Puts the extent being grown into the map, cutting what lay there.
    fn settle(&mut self) -> Result<(), BuildError> {
        let Some(new) = self.last.take() else {
            return Ok(());
        };
        if self.map.len() >= MAX_EXTENTS {
            return Err(BuildError::TooMany);
        }
        let (start, end) = (new.start, new.end());
        // The one that begins before the new one and reaches into it.
        if let Some((&before, &(len, target))) = self.map.range(..start).next_back() {
            let old = Extent {
                start: before,
                len,
                target,
            };
            if old.end() > start {
                self.map.insert(before, (start - before, target));
                if old.end() > end {
                    let rest = old.from(end);
                    self.map.insert(end, (rest.len, rest.target));
                }
            }
        }
        // Those that begin inside the new one.
        while let Some((&inside, &(len, target))) = self.map.range(start..end).next() {
            self.map.remove(&inside);
            let old = Extent {
                start: inside,
                len,
                target,
            };
            if old.end() > end {
                let rest = old.from(end);
                self.map.insert(end, (rest.len, rest.target));
            }
        }
        self.map.insert(start, (new.len, new.target));
        Ok(())
    }

    pub fn finish(mut self) -> Result<ExtentMap<T>, BuildError> {
        self.settle()?;
        let mut extents: Vec<Extent<T>> = Vec::with_capacity(self.map.len());
        for (start, (len, target)) in self.map {
            match extents.last_mut() {
                Some(last) if last.end() == start && last.target.continues(last.len, target) => {
                    last.len += len;
                }
                _ => extents.push(Extent { start, len, target }),
            }
        }
        Ok(ExtentMap { extents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The simplest target: a position that moves along.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct At(u64);
    impl Target for At {
        fn advance(self, by: u64) -> Self {
            At(self.0 + by)
        }
        fn continues(self, len: u64, next: Self) -> bool {
            self.0 + len == next.0
        }
    }

    /// Against the plainest possible model: an array of bytes' targets, written in order.
    #[test]
    fn later_extents_win_like_writes_to_an_array() {
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..500 {
            let mut model = [None; 64];
            let mut builder = Builder::new();
            for _ in 0..next(12) {
                let (start, target) = (next(60), next(1000));
                let len = next(64 - start + 1);
                builder.push(start, len, At(target)).unwrap();
                for i in 0..len {
                    model[(start + i) as usize] = Some(target + i);
                }
            }
            let map = builder.finish().unwrap();
            for (at, expected) in model.iter().enumerate() {
                assert_eq!(map.find(at as u64).map(|e| e.target.0), *expected);
            }
            let mut seen = [None; 64];
            for piece in map.within(5, 50) {
                for i in 0..piece.len {
                    seen[(piece.start + i) as usize] = Some(piece.target.0 + i);
                }
            }
            assert_eq!(seen[5..50], model[5..50]);
            assert!(seen[..5].iter().chain(&seen[50..]).all(Option::is_none));
        }
    }
}

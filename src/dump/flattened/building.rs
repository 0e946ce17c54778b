//! An index in the making: each block of the stream goes on with a lane, begins one, or lies over
//! others.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{BLOCK_HEADER, Coverage, FIRST_STRIDE, FlatIndex, Lane, MAX_DISORDER, Point, Position};
use crate::dump::extents::{BuildError, Builder};

/// More lanes or overlapping blocks than [`MAX_DISORDER`].
pub(super) struct TooMuchDisorder;

/// What the blocks so far make.
pub(super) struct Building {
    points: Vec<Point>,
    most_points: usize,
    /// By their start.
    lanes: BTreeMap<u64, Lane>,
    over: Builder<Position>,
    /// Blocks that were written over others.
    over_blocks: usize,
    /// Bytes of the stream between the points of a lane, at least.
    stride: u64,
}

impl Building {
    pub fn new(most_points: usize) -> Building {
        Building {
            points: Vec::new(),
            most_points,
            lanes: BTreeMap::new(),
            over: Builder::new(),
            over_blocks: 0,
            stride: 0,
        }
    }

    /// Adds a block whose header stands at `header`.
    pub fn add(&mut self, offset: u64, size: u64, header: u64) -> Result<(), TooMuchDisorder> {
        if size == 0 {
            return Ok(());
        }
        let end = offset + size;
        let overlaps_next = self.lanes.range(offset..end).next().is_some();
        let before = self.lanes.range_mut(..=offset).next_back();
        let overlaps_before = before.as_ref().is_some_and(|(_, lane)| lane.end > offset);
        let goes_on = before.filter(|(_, lane)| lane.end == offset && !lane.closed);
        // What comes later must lie above what was written over others, too.
        let overlaps_over = self.over_blocks > 0
            && (self.over.overlaps(offset, end)).map_err(|_| TooMuchDisorder)?;
        if overlaps_next || overlaps_before || overlaps_over {
            if let Some((_, lane)) = goes_on {
                lane.closed = true;
            }
            self.over_blocks += 1;
            if self.over_blocks > MAX_DISORDER {
                return Err(TooMuchDisorder);
            }
            let position = Position(header + BLOCK_HEADER);
            return self
                .over
                .push(offset, size, position)
                .map_err(|_| TooMuchDisorder);
        }
        match goes_on {
            Some((_, lane)) => {
                lane.end = end;
                if header - lane.point < self.stride {
                    return Ok(());
                }
                lane.point = header;
            }
            None => {
                if self.lanes.len() >= MAX_DISORDER {
                    return Err(TooMuchDisorder);
                }
                let lane = Lane {
                    end,
                    closed: false,
                    point: header,
                };
                self.lanes.insert(offset, lane);
            }
        }
        self.points.push(Point {
            start: offset,
            header,
        });
        while self.points.len() >= self.most_points {
            if self.stride >= 1 << 60 {
                return Err(TooMuchDisorder);
            }
            self.stride = (self.stride * 2).max(FIRST_STRIDE);
            self.thin_out();
        }
        Ok(())
    }

    /// Leaves points at least a stride apart, and the first of each lane.
    fn thin_out(&mut self) {
        self.points.sort_unstable_by_key(|point| point.start);
        let (mut kept, stride) = (0, self.stride);
        self.points.retain(|point| {
            let begins_lane = self.lanes.contains_key(&point.start);
            let keep = begins_lane || point.header.saturating_sub(kept) >= stride;
            if keep {
                kept = point.header;
                if let Some((_, lane)) = self.lanes.range_mut(..=point.start).next_back() {
                    lane.point = point.header;
                }
            }
            keep
        });
    }

    pub fn finish(mut self, ended: bool) -> Result<FlatIndex, BuildError> {
        self.points.sort_unstable_by_key(|point| point.start);
        self.points.shrink_to_fit();
        let lanes: Vec<Range<u64>> = self
            .lanes
            .iter()
            .map(|(&start, lane)| start..lane.end)
            .collect();
        let over = self.over.finish()?;
        let covered = Coverage::of(
            lanes
                .iter()
                .cloned()
                .chain(over.iter().map(|piece| piece.start..piece.end())),
        );
        Ok(FlatIndex {
            points: self.points,
            lanes,
            over,
            covered,
            ended,
        })
    }
}

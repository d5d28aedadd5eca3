//! Sparse files: a map of the parts that have content; the archive stores those parts back to back.

use crate::limits::LimitExceeded;

/// A part of a file that has content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A checked map: segments in order, apart from each other, inside the file, as many bytes as are stored.
#[derive(Debug, Default)]
pub(super) struct SparseMap {
    segments: Vec<Segment>,
    pub(super) real_size: u64,
}

/// Most segments of one file: each costs 24 bytes of archive and 16 of memory.
const MAX_SEGMENTS: usize = 1 << 20;

impl SparseMap {
    pub(super) fn new(
        mut segments: Vec<Segment>,
        real_size: u64,
        stored: u64,
    ) -> Result<Self, &'static str> {
        let (mut end, mut sum) = (0u64, 0u64);
        for segment in &segments {
            if segment.offset < end {
                return Err("a sparse map whose parts overlap or are out of order");
            }
            end = segment.offset.checked_add(segment.len).ok_or("a sparse map beyond 2^64")?;
            // Cannot overflow: the parts do not overlap.
            sum += segment.len;
        }
        if end > real_size {
            return Err("a sparse map that goes beyond the end of the file");
        }
        if sum != stored {
            return Err("a sparse map that does not match the stored content");
        }
        segments.retain(|segment| segment.len > 0);
        Ok(Self { segments, real_size })
    }

    /// Bytes of holes.
    pub(super) fn holes(&self) -> u64 {
        self.real_size - self.segments.iter().map(|segment| segment.len).sum::<u64>()
    }

    /// What is at `position`: bytes of hole, or bytes of content, up to the next change.
    pub(super) fn run(&self, position: u64) -> Run {
        let index =
            self.segments.partition_point(|segment| segment.offset + segment.len <= position);
        match self.segments.get(index) {
            Some(segment) if segment.offset <= position => {
                Run::Content(segment.offset + segment.len - position)
            }
            Some(segment) => Run::Hole(segment.offset - position),
            None => Run::Hole(self.real_size - position),
        }
    }
}

/// Bytes of one sort that lie together.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Run {
    Content(u64),
    Hole(u64),
}

pub(super) fn check_count(segments: usize) -> Result<(), LimitExceeded> {
    LimitExceeded::check("parts of one sparse file", segments as u64, MAX_SEGMENTS as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(list: &[(u64, u64)]) -> Vec<Segment> {
        list.iter().map(|(offset, len)| Segment { offset: *offset, len: *len }).collect()
    }

    #[test]
    fn runs() {
        let map = SparseMap::new(segments(&[(10, 5), (15, 5), (30, 0), (40, 2)]), 50, 12).unwrap();
        assert_eq!(map.holes(), 38);
        assert_eq!(map.run(0), Run::Hole(10));
        assert_eq!(map.run(12), Run::Content(3));
        assert_eq!(map.run(15), Run::Content(5));
        assert_eq!(map.run(20), Run::Hole(20));
        assert_eq!(map.run(41), Run::Content(1));
        assert_eq!(map.run(42), Run::Hole(8));
    }

    #[test]
    fn hostile_maps_are_refused() {
        assert!(SparseMap::new(segments(&[(10, 5), (12, 5)]), 50, 10).is_err(), "overlap");
        assert!(SparseMap::new(segments(&[(10, 5)]), 12, 5).is_err(), "beyond the end");
        assert!(SparseMap::new(segments(&[(10, 5)]), 50, 6).is_err(), "stored differs");
        assert!(SparseMap::new(segments(&[(u64::MAX, 5)]), 50, 5).is_err(), "overflow");
    }
}

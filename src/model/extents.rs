//! Turns the block status of a server into the ranges to read: cluster-aligned extents, in the
//! disk's order.

use std::collections::VecDeque;

use super::block::{CLUSTER, Extent, ExtentKind};

/// A stretch of a disk for which one metadata context reports the same flags. Its offset follows
/// from the runs before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its length in bytes; never 0.
    pub length: u64,
    /// The context's flags.
    pub flags: u32,
}

/// The report of one metadata context: consecutive runs, and the flag to look at.
#[derive(Clone, Copy, Debug)]
pub struct Runs<'a> {
    /// The runs, from the planner's position on.
    pub runs: &'a [Run],
    /// The flag, as a mask.
    pub flag: u32,
}

/// Turns the reports of metadata contexts into the extents to copy.
///
/// A cluster with any dirty byte is copied whole. It is [`ExtentKind::Zero`] if all of it is known
/// to read as zero, and [`ExtentKind::Data`] otherwise. Clean clusters are left out, except those
/// that read as zero if the caller wants these.
///
/// A report may end anywhere, also within a cluster: the planner remembers that cluster until the
/// rest is reported. Adjacent clusters of one kind form one extent.
#[derive(Clone, Debug)]
pub struct ExtentPlanner {
    size: u64,
    all_from: u64,
    clean_zeroes: bool,
    position: u64,
    cluster: ClusterSoFar,
    planned: VecDeque<Extent>,
}

/// The state of the cluster at the planner's position.
#[derive(Clone, Copy, Debug)]
struct ClusterSoFar {
    dirty: bool,
    zero: bool,
}

/// A cluster about which nothing is reported yet.
const UNREPORTED: ClusterSoFar = ClusterSoFar {
    dirty: false,
    zero: true,
};

impl ExtentPlanner {
    /// Plans a disk of `size` bytes. Everything from the cluster of `all_from` on counts as dirty.
    /// With `clean_zeroes`, clean clusters that read as zero are planned too.
    pub fn new(size: u64, all_from: Option<u64>, clean_zeroes: bool) -> Self {
        let all_from = all_from.unwrap_or(u64::MAX);
        ExtentPlanner {
            size,
            all_from: all_from - all_from % CLUSTER,
            clean_zeroes,
            position: 0,
            cluster: UNREPORTED,
            planned: VecDeque::new(),
        }
    }

    /// The offset of the first byte of the disk that was not reported yet.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the whole disk was reported.
    pub fn complete(&self) -> bool {
        self.position == self.size
    }

    /// The number of planned extents that were not taken yet.
    pub fn planned(&self) -> usize {
        self.planned.len()
    }

    /// Takes reports from [`Self::position`] on, up to where **all** given contexts report, and at
    /// most up to `end`. Returns the number of bytes taken.
    ///
    /// A context that is `None` reports nothing: without a `dirty` context everything is dirty,
    /// without a `zero` context nothing is known to read as zero.
    pub fn add_status(&mut self, dirty: Option<Runs<'_>>, zero: Option<Runs<'_>>, end: u64) -> u64 {
        let begin = self.position;
        let end = end.min(self.size);
        let mut dirty = Walk::new(dirty, true);
        let mut zero = Walk::new(zero, false);
        while self.position < end {
            let (Some(dirty_run), Some(zero_run)) = (dirty.current(), zero.current()) else {
                break;
            };
            let length = dirty_run.0.min(zero_run.0).min(end - self.position);
            self.push(length, dirty_run.1, zero_run.1);
            dirty.advance(length);
            zero.advance(length);
        }
        self.position - begin
    }

    /// The next extent, if one is planned.
    pub fn next(&self) -> Option<&Extent> {
        self.planned.front()
    }

    /// Takes the next extent, or the first `longest` bytes of it. `longest` is a multiple of
    /// [`CLUSTER`] and not 0.
    pub fn take(&mut self, longest: u64) -> Option<Extent> {
        debug_assert!(
            longest > 0 && longest.is_multiple_of(CLUSTER),
            "extents are whole clusters"
        );
        let front = self.planned.front_mut()?;
        if front.length <= longest {
            return self.planned.pop_front();
        }
        let taken = Extent {
            length: longest,
            ..*front
        };
        front.offset += longest;
        front.length -= longest;
        Some(taken)
    }

    /// Adds `length` bytes of one kind.
    fn push(&mut self, mut length: u64, dirty: bool, zero: bool) {
        while length > 0 {
            let within = self.position % CLUSTER;
            // Whole clusters at once, so that the cost follows the number of runs and not the size
            // of the disk.
            let piece = if within == 0 && length >= CLUSTER {
                let forced = self.position >= self.all_from;
                let alike = if forced {
                    length
                } else {
                    length.min(self.all_from - self.position)
                };
                self.plan(self.position, alike - alike % CLUSTER, dirty || forced, zero)
            } else {
                self.push_within_cluster(length.min(CLUSTER - within), dirty, zero)
            };
            self.position += piece;
            length -= piece;
        }
    }

    /// Adds `length` bytes to the cluster at the planner's position. Returns `length`.
    fn push_within_cluster(&mut self, length: u64, dirty: bool, zero: bool) -> u64 {
        self.cluster.dirty |= dirty || self.position >= self.all_from;
        self.cluster.zero &= zero;
        let end = self.position + length;
        if end.is_multiple_of(CLUSTER) || end == self.size {
            let start = self.position - self.position % CLUSTER;
            let ClusterSoFar { dirty, zero } = std::mem::replace(&mut self.cluster, UNREPORTED);
            self.plan(start, end - start, dirty, zero);
        }
        length
    }

    /// Appends whole clusters (or the disk's last one) of one kind. Returns their length.
    fn plan(&mut self, offset: u64, length: u64, dirty: bool, zero: bool) -> u64 {
        let kind = match (dirty, zero) {
            (true, false) => Some(ExtentKind::Data),
            (true, true) => Some(ExtentKind::Zero),
            (false, true) => self.clean_zeroes.then_some(ExtentKind::CleanZero),
            (false, false) => None,
        };
        if let Some(kind) = kind {
            match self.planned.back_mut() {
                Some(last) if last.kind == kind && last.end() == offset => last.length += length,
                _ => self.planned.push_back(Extent { offset, length, kind }),
            }
        }
        length
    }
}

/// A position in the runs of a context.
struct Walk<'a> {
    runs: Option<Runs<'a>>,
    used: u64,
    unreported: bool,
}

impl<'a> Walk<'a> {
    fn new(runs: Option<Runs<'a>>, unreported: bool) -> Self {
        Walk {
            runs,
            used: 0,
            unreported,
        }
    }

    /// Length and flag of the rest of the current run; `None` after the last run.
    fn current(&self) -> Option<(u64, bool)> {
        match &self.runs {
            None => Some((u64::MAX, self.unreported)),
            Some(left) => {
                let run = left.runs.first()?;
                Some((run.length - self.used, run.flags & left.flag != 0))
            }
        }
    }

    fn advance(&mut self, length: u64) {
        if let Some(left) = &mut self.runs {
            self.used += length;
            if left.runs.first().is_some_and(|run| run.length == self.used) {
                left.runs = &left.runs[1..];
                self.used = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIRTY: u32 = 1;
    const ZERO: u32 = 2;

    fn run(length: u64, flags: u32) -> Run {
        Run { length, flags }
    }

    fn taken(planner: &mut ExtentPlanner) -> Vec<Extent> {
        std::iter::from_fn(|| planner.take(1 << 40)).collect()
    }

    fn dirty(runs: &[Run]) -> Option<Runs<'_>> {
        Some(Runs { runs, flag: DIRTY })
    }

    fn zero(runs: &[Run]) -> Option<Runs<'_>> {
        Some(Runs { runs, flag: ZERO })
    }

    #[test]
    fn without_contexts_the_whole_disk_is_data() {
        let mut planner = ExtentPlanner::new(3 * CLUSTER + 512, None, false);
        assert_eq!(planner.add_status(None, None, u64::MAX), 3 * CLUSTER + 512);
        assert!(planner.complete());
        assert_eq!(
            taken(&mut planner),
            [Extent {
                offset: 0,
                length: 3 * CLUSTER + 512,
                kind: ExtentKind::Data
            }]
        );
    }

    #[test]
    fn a_hole_that_does_not_read_as_zero_is_data() {
        const HOLE: u32 = 1;
        let mut planner = ExtentPlanner::new(CLUSTER, None, false);
        planner.add_status(None, zero(&[run(CLUSTER, HOLE)]), u64::MAX);
        let next = planner.next().expect("an extent is planned");
        assert_eq!(next.kind, ExtentKind::Data);
    }

    #[test]
    fn one_dirty_byte_makes_its_cluster_dirty() {
        let mut planner = ExtentPlanner::new(4 * CLUSTER, None, false);
        let runs = [run(2 * CLUSTER - 1, 0), run(1, DIRTY), run(2 * CLUSTER, 0)];
        assert_eq!(planner.add_status(dirty(&runs), None, u64::MAX), 4 * CLUSTER);
        assert_eq!(
            taken(&mut planner),
            [Extent {
                offset: CLUSTER,
                length: CLUSTER,
                kind: ExtentKind::Data
            }]
        );
    }

    #[test]
    fn only_ranges_that_both_contexts_report_are_used() {
        let mut planner = ExtentPlanner::new(4 * CLUSTER, None, false);
        let used = planner.add_status(
            dirty(&[run(4 * CLUSTER, DIRTY)]),
            zero(&[run(CLUSTER + 512, ZERO)]),
            u64::MAX,
        );
        assert_eq!(used, CLUSTER + 512);
        assert_eq!(planner.position(), CLUSTER + 512);
        assert_eq!(planner.planned(), 1, "the second cluster is not known whole");
        planner.add_status(
            dirty(&[run(3 * CLUSTER - 512, 0)]),
            zero(&[run(3 * CLUSTER, 0)]),
            u64::MAX,
        );
        assert_eq!(
            taken(&mut planner),
            [
                Extent {
                    offset: 0,
                    length: CLUSTER,
                    kind: ExtentKind::Zero
                },
                Extent {
                    offset: CLUSTER,
                    length: CLUSTER,
                    kind: ExtentKind::Data
                },
            ]
        );
    }

    #[test]
    fn a_long_extent_is_taken_in_pieces() {
        let mut planner = ExtentPlanner::new(5 * CLUSTER, None, false);
        planner.add_status(None, None, u64::MAX);
        let lengths: Vec<u64> = std::iter::from_fn(|| planner.take(2 * CLUSTER))
            .map(|extent| extent.length)
            .collect();
        assert_eq!(lengths, [2 * CLUSTER, 2 * CLUSTER, CLUSTER]);
    }

    /// One flag per 512 bytes; neighbours share it in granules of a power of two.
    fn arb_map(units: usize) -> impl Strategy<Value = Vec<bool>> {
        (0u32..13, proptest::collection::vec(any::<bool>(), 1..200)).prop_map(move |(shift, granules)| {
            (0..units)
                .map(|unit| granules[(unit >> shift) % granules.len()])
                .collect()
        })
    }

    /// The runs with which a server would answer from unit `from` on, cut off after `most` runs and
    /// `longest` units.
    fn answer(map: &[bool], from: usize, flag: u32, most: usize, longest: usize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for &set in map[from..].iter().take(longest) {
            let flags = if set { flag } else { 0 };
            let full = runs.len() == most;
            match runs.last_mut() {
                Some(last) if last.flags == flags => last.length += 512,
                _ if full => break,
                _ => runs.push(run(512, flags)),
            }
        }
        runs
    }

    /// The naive way: examines every byte of every cluster.
    fn naive(dirty: &[bool], zero: &[bool], all_from: Option<u64>) -> Vec<(u64, ExtentKind)> {
        let units = (CLUSTER / 512) as usize;
        let mut clusters = Vec::new();
        for (index, (dirty, zero)) in dirty.chunks(units).zip(zero.chunks(units)).enumerate() {
            let offset = index as u64 * CLUSTER;
            let forced = all_from.is_some_and(|from| offset + CLUSTER > from);
            if forced || dirty.contains(&true) {
                let kind = if zero.contains(&false) {
                    ExtentKind::Data
                } else {
                    ExtentKind::Zero
                };
                clusters.push((offset, kind));
            }
        }
        clusters
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn the_plan_is_what_looking_at_every_byte_gives(
            (units, dirty_map, zero_map) in (1usize..20_000)
                .prop_flat_map(|units| (Just(units), arb_map(units), arb_map(units))),
            all_from in proptest::option::of(0u64..20_000 * 512),
            cuts in proptest::collection::vec((1usize..40, 1usize..5000, 1usize..40, 1usize..5000), 1..20),
            longest in 1u64..40,
        ) {
            let size = units as u64 * 512;
            let mut planner = ExtentPlanner::new(size, all_from, false);
            let mut extents = Vec::new();
            for (dirty_most, dirty_longest, zero_most, zero_longest) in cuts.iter().cycle() {
                let from = (planner.position() / 512) as usize;
                let dirty_runs = answer(&dirty_map, from, DIRTY, *dirty_most, *dirty_longest);
                let zero_runs = answer(&zero_map, from, ZERO, *zero_most, *zero_longest);
                let used = planner.add_status(dirty(&dirty_runs), zero(&zero_runs), u64::MAX);
                let common = |runs: &[Run]| runs.iter().map(|run| run.length).sum::<u64>();
                prop_assert_eq!(used, common(&dirty_runs).min(common(&zero_runs)));
                extents.extend(std::iter::from_fn(|| planner.take(longest * CLUSTER)));
                if planner.complete() {
                    break;
                }
            }
            let mut clusters = Vec::new();
            for extent in &extents {
                prop_assert!(extent.length > 0 && extent.length <= longest * CLUSTER);
                prop_assert!(extent.end().is_multiple_of(CLUSTER) || extent.end() == size);
                for offset in (extent.offset..extent.end()).step_by(CLUSTER as usize) {
                    clusters.push((offset, extent.kind));
                }
            }
            prop_assert_eq!(clusters, naive(&dirty_map, &zero_map, all_from));
        }
    }

    #[test]
    fn clean_zeroes_are_reported_on_request() {
        let dirty_runs = [run(CLUSTER, DIRTY), run(2 * CLUSTER, 0)];
        let zero_runs = [run(2 * CLUSTER, ZERO), run(CLUSTER, 0)];
        for wanted in [false, true] {
            let mut planner = ExtentPlanner::new(3 * CLUSTER, None, wanted);
            planner.add_status(dirty(&dirty_runs), zero(&zero_runs), u64::MAX);
            let kinds: Vec<ExtentKind> = taken(&mut planner).iter().map(|extent| extent.kind).collect();
            let mut expected = vec![ExtentKind::Zero];
            expected.extend(wanted.then_some(ExtentKind::CleanZero));
            assert_eq!(kinds, expected);
        }
    }
}

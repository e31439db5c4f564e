//! From what a server tells about ranges of a disk to what has to be read: cluster-aligned extents, in the disk's order.

use std::collections::VecDeque;

use super::block::{CLUSTER, Extent, ExtentKind};

/// A stretch of a disk for which one metadata context tells the same flags. Its place follows from the runs before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How long it is, in bytes; never 0.
    pub length: u64,
    /// The context's flags.
    pub flags: u32,
}

/// What one metadata context tells: consecutive runs, and the flag that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Runs<'a> {
    /// The runs, from the place where the planner stands.
    pub runs: &'a [Run],
    /// The flag, as a mask.
    pub flag: u32,
}

/// Turns what metadata contexts tell into the extents to copy.
///
/// A cluster with any dirty byte is copied whole. It is [`ExtentKind::Zero`] when all of it is known to read as zero,
/// [`ExtentKind::Data`] otherwise. Clean clusters are left out, but for those that read as zero where these are wanted. What is told may end anywhere, also within a cluster: the planner keeps what it knows of
/// that cluster until the rest is told. Neighbours of one kind are one extent.
#[derive(Clone, Debug)]
pub struct ExtentPlanner {
    size: u64,
    all_from: u64,
    clean_zeroes: bool,
    position: u64,
    cluster: ClusterSoFar,
    planned: VecDeque<Extent>,
}

/// What is known of the cluster in which the planner stands.
#[derive(Clone, Copy, Debug)]
struct ClusterSoFar {
    dirty: bool,
    zero: bool,
}

/// A cluster of which nothing is known yet.
const UNTOLD: ClusterSoFar = ClusterSoFar {
    dirty: false,
    zero: true,
};

impl ExtentPlanner {
    /// For a disk of `size` bytes. From the cluster of `all_from` on, everything counts as dirty.
    /// With `clean_zeroes`, clean clusters that read as zero are told too.
    pub fn new(size: u64, all_from: Option<u64>, clean_zeroes: bool) -> Self {
        let all_from = all_from.unwrap_or(u64::MAX);
        ExtentPlanner {
            size,
            all_from: all_from - all_from % CLUSTER,
            clean_zeroes,
            position: 0,
            cluster: UNTOLD,
            planned: VecDeque::new(),
        }
    }

    /// The first byte of the disk about which nothing was told yet.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the whole disk was told.
    pub fn complete(&self) -> bool {
        self.position == self.size
    }

    /// How many extents are planned and not yet taken.
    pub fn planned(&self) -> usize {
        self.planned.len()
    }

    /// Takes what was told from [`Self::position`] on, as far as **all** given contexts tell it and at most up to `end`,
    /// and returns how many bytes that was. A context that is `None` tells nothing: without a `dirty` context everything is dirty, without a `zero` context nothing is known
    /// to read as zero.
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

    /// The next extent, as far as it is planned.
    pub fn next(&self) -> Option<&Extent> {
        self.planned.front()
    }

    /// Takes the next extent, or as much of it as `longest` allows. `longest` is a multiple of [`CLUSTER`] and not 0.
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

    /// `length` bytes of one kind follow.
    fn push(&mut self, mut length: u64, dirty: bool, zero: bool) {
        while length > 0 {
            let within = self.position % CLUSTER;
            // Whole clusters at once, so that the cost follows the number of runs and not the size of the disk.
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

    /// `length` bytes of the cluster in which the planner stands are told.
    fn push_within_cluster(&mut self, length: u64, dirty: bool, zero: bool) -> u64 {
        self.cluster.dirty |= dirty || self.position >= self.all_from;
        self.cluster.zero &= zero;
        let end = self.position + length;
        if end.is_multiple_of(CLUSTER) || end == self.size {
            let start = self.position - self.position % CLUSTER;
            let ClusterSoFar { dirty, zero } = std::mem::replace(&mut self.cluster, UNTOLD);
            self.plan(start, end - start, dirty, zero);
        }
        length
    }

    /// Whole clusters (or the disk's last one) of one kind follow what is planned. Returns their length.
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

/// A place in a context's runs.
struct Walk<'a> {
    runs: Option<Runs<'a>>,
    used: u64,
    untold: bool,
}

impl<'a> Walk<'a> {
    fn new(runs: Option<Runs<'a>>, untold: bool) -> Self {
        Walk {
            runs,
            used: 0,
            untold,
        }
    }

    /// Length and flag of what follows; `None` when no more was told.
    fn current(&self) -> Option<(u64, bool)> {
        match &self.runs {
            None => Some((u64::MAX, self.untold)),
            Some(told) => {
                let run = told.runs.first()?;
                Some((run.length - self.used, run.flags & told.flag != 0))
            }
        }
    }

    fn advance(&mut self, length: u64) {
        if let Some(told) = &mut self.runs {
            self.used += length;
            if told.runs.first().is_some_and(|run| run.length == self.used) {
                told.runs = &told.runs[1..];
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
        let next = planner.next().expect("it was told");
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
        let told = planner.add_status(
            dirty(&[run(4 * CLUSTER, DIRTY)]),
            zero(&[run(CLUSTER + 512, ZERO)]),
            u64::MAX,
        );
        assert_eq!(told, CLUSTER + 512);
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

    /// One flag per 512 bytes, made of granules.
    fn arb_map(units: usize) -> impl Strategy<Value = Vec<bool>> {
        (0u32..13, proptest::collection::vec(any::<bool>(), 1..200)).prop_map(move |(shift, granules)| {
            (0..units)
                .map(|unit| granules[(unit >> shift) % granules.len()])
                .collect()
        })
    }

    /// The runs that a server would answer from unit `from` on, cut off after `most` runs and `longest` units.
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

    /// The naive way: every cluster by all of its bytes.
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
                let told = planner.add_status(dirty(&dirty_runs), zero(&zero_runs), u64::MAX);
                let common = |runs: &[Run]| runs.iter().map(|run| run.length).sum::<u64>();
                prop_assert_eq!(told, common(&dirty_runs).min(common(&zero_runs)));
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

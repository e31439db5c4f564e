//! Property tests of the source against servers in memory with varied behaviour.

use proptest::prelude::*;

use super::super::fake::FakeExport;
use super::super::wire::*;
use super::tests::{BITMAP, C, changes, clusters, options, runs_of, source};
use super::*;

#[derive(Clone, Debug)]
struct Case {
    size: usize,
    minimum: u32,
    dirty_unit: usize,
    zero_unit: usize,
    dirty: Vec<bool>,
    zero: Vec<bool>,
    full: bool,
    all_from: Option<u64>,
    allocation: bool,
    gather: usize,
    fragment: Option<usize>,
    most_runs: Vec<usize>,
    unfragmented: bool,
    buffers: usize,
    capacity: usize,
    first_status: u64,
}

fn arb_case() -> impl Strategy<Value = Case> {
    let map = || proptest::collection::vec(any::<bool>(), 8);
    let disk = (
        1usize..40,
        prop::sample::select(vec![512u32, 4096, 65536]),
        0u32..8,
        0u32..8,
        map(),
        map(),
    );
    let wish = (
        any::<bool>(),
        proptest::option::of(0u64..40 * CLUSTER),
        any::<bool>(),
    );
    let manner = (
        1usize..6,
        proptest::option::of(1000usize..100_000),
        proptest::collection::vec(1usize..6, 1..3),
        any::<bool>(),
    );
    let ours = (1usize..6, 1usize..5, 1u64..20);
    (disk, wish, manner, ours).prop_map(|(disk, wish, manner, ours)| {
        let (units, minimum, dirty_shift, zero_shift, dirty, zero) = disk;
        // Units of the maps are multiples of the minimum block size, up to 128 times as long.
        let size = units * 33 * 512;
        let size = size.next_multiple_of(minimum as usize);
        let stretched = |map: Vec<bool>, unit: usize| (0..size / unit + 1).map(|i| map[i * 5 % 8]).collect();
        let dirty_unit = (minimum as usize) << dirty_shift;
        let zero_unit = (minimum as usize) << zero_shift;
        Case {
            size,
            minimum,
            dirty_unit,
            zero_unit,
            dirty: stretched(dirty, dirty_unit),
            zero: stretched(zero, zero_unit),
            full: wish.0,
            all_from: wish.1,
            allocation: wish.2,
            gather: manner.0,
            fragment: manner.1,
            most_runs: manner.2,
            unfragmented: manner.3,
            buffers: ours.0,
            capacity: ours.1 * C,
            first_status: ours.2 * CLUSTER,
        }
    })
}

impl Case {
    fn export(&self) -> FakeExport {
        let mut disk: Vec<u8> = (0..self.size).map(|at| (at / 512 % 251 + 1) as u8).collect();
        for (at, byte) in disk.iter_mut().enumerate() {
            if self.zero[at / self.zero_unit] {
                *byte = 0;
            }
        }
        let mut export = FakeExport::new(disk);
        if self.allocation {
            let runs = runs_of(&self.zero, self.zero_unit, self.size, STATE_HOLE | STATE_ZERO);
            export.contexts.push((BASE_ALLOCATION.to_owned(), runs));
        }
        if !self.full {
            let runs = runs_of(&self.dirty, self.dirty_unit, self.size, STATE_DIRTY);
            export.contexts.push((BITMAP.to_owned(), runs));
        }
        export.block_sizes = Some([self.minimum, self.minimum.max(4096), 128 << 10]);
        export.gather = self.gather;
        export.fragment = self.fragment;
        export.most_runs = self.most_runs.clone();
        if !self.unfragmented {
            export.flags &= !FLAG_SEND_DF;
        }
        export
    }

    /// The expected content of every cluster, computed byte by byte.
    fn expected(&self, disk: &[u8]) -> Vec<Option<Vec<u8>>> {
        disk.chunks(C)
            .enumerate()
            .map(|(index, bytes)| {
                let range = index * C..index * C + bytes.len();
                let forced = self.all_from.is_some_and(|from| ((index + 1) * C) as u64 > from);
                let dirty = range.clone().any(|at| self.dirty[at / self.dirty_unit]);
                (self.full || forced || dirty).then(|| bytes.to_vec())
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn right_clusters_arrive_however_the_server_behaves(case in arb_case()) {
        let export = case.export();
        let mode = if case.full { Mode::Full } else { changes() };
        let mut options = options(mode, case.buffers, case.capacity);
        options.all_from = case.all_from;
        options.first_status = case.first_status;
        let mut source = source(&export, options);
        let got = clusters(&mut source).expect("an honest server");
        let expected = case.expected(&export.disk);
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            prop_assert!(got == expected, "cluster {} of {}", index, expected.is_some());
        }
    }
}

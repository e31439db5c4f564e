//! Reproducible random numbers.

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub struct Rng(u64);

impl Rng {
    /// A new seed each time, unless `VMSNAP_TEST_SEED` is set. The seed is printed, so that a
    /// failed test shows it.
    pub fn new() -> Rng {
        let wanted = std::env::var("VMSNAP_TEST_SEED").ok();
        let wanted = wanted.map(|text| text.parse().expect("VMSNAP_TEST_SEED is a number"));
        let seed = wanted.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        println!("VMSNAP_TEST_SEED={seed}");
        Rng(seed)
    }

    /// The same numbers for the same seed.
    pub fn seeded(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A random element.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

//! Compressed and plain restore points of real domains.

use std::fs;
use std::path::{Path, PathBuf};

use vmsnap::model::compression::Compression;
use vmsnap::model::restore_point::Level;

use crate::embed::{Kind, Shape, TestDomain};
use crate::owner;
use crate::verbs::rng::Rng;
use crate::verbs::story::Story;

const DISKS: [(Kind, u64); 1] = [(Kind::Qcow2, (8 << 20) + 512)];

/// Writes bytes that cannot be compressed to a file.
fn noise(folder: &Path, seed: u8) -> PathBuf {
    let mut bytes = vec![0; 1 << 20];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[seed]).finalize_xof().fill(&mut bytes);
    let file = folder.join("noise");
    fs::write(&file, bytes).expect("it can be written");
    file
}

#[test]
fn compressed_and_plain_points_form_one_chain() {
    let mut rng = Rng::new();
    // A command of qemu-io has no quotes, so the path has no blanks.
    let folder = owner::folder("noise-");
    for active in [false, true] {
        let shape = Shape {
            disks: &DISKS,
            ..Shape::default()
        };
        let mut story = Story::of(TestDomain::shaped("compressed ", &shape));
        if active {
            story.domain.start();
        }
        for (round, method) in ["zstd", "none", "zstd:19", "zstd"].into_iter().enumerate() {
            story.scribble(&mut rng, 10);
            story.write("vda", 7 << 20, 100_352, round as u8 + 1);
            let noise = noise(folder.path(), round as u8);
            let offset = (round * 3) << 19;
            let write = format!("write -s {} {offset} 1M", noise.display());
            story.domain.io("vda", &write);
            story.learn("vda");
            story.options.compression = method.parse().expect("a method");
            let point = story.back_up().point;
            let is_plain = story.options.compression == Compression::None;
            let expected = (!is_plain).then_some("zstd");
            assert_eq!(point.disks[0].compression.as_deref(), expected, "{method}");
            assert_eq!(point.level == Level::Full, round == 0, "{method}");
        }
        story.prove();
    }
}

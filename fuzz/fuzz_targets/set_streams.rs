//! Any bytes as a stream of virtnbdbackup: it is refused, or gives a disk without gaps.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vmsnap::repo::set_fuzzing::{stream, write};

/// A file of this process.
static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("vmsnap-fuzz-{}.data", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    write(&FILE, bytes).expect("the file can be written");
    stream(&FILE);
    std::fs::remove_file(&*FILE).expect("the file can be removed");
});

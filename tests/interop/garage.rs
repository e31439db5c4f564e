//! Repositories in a bucket of garage, an S3 server that checks signatures. `make servers` runs
//! these tests; the first run builds garage.
#![allow(clippy::disallowed_methods, reason = "tests start programs and wait for them")]

#[path = "s3/checks.rs"]
mod checks;
#[path = "s3/server.rs"]
mod server;
#[path = "s3/stage.rs"]
mod stage;

use checks::Traits;
use server::Server;

const TRAITS: Traits = Traits {
    conditional_puts: "ignored",
    checks_signatures: true,
};

/// A folder that is removed at the end of the test.
fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn garage() -> Server {
    Server::start("garage")
}

#[test]
fn points_on_garage_are_made_read_and_copied() {
    checks::points_are_made_read_and_copied(&garage(), &TRAITS);
}

#[test]
fn pruned_data_on_garage_are_deleted_after_the_grace_period() {
    checks::pruned_data_are_deleted_after_the_grace_period(&garage());
}

#[test]
fn refusals_of_garage_are_explained() {
    checks::refusals_are_explained(&mut garage(), &TRAITS);
}

#[test]
fn long_lists_of_garage_are_complete() {
    checks::long_lists_are_complete(&garage());
}

#[test]
fn two_writers_on_garage_lose_nothing() {
    checks::two_writers_lose_nothing(&garage(), &TRAITS);
}

//! Repositories in buckets of moto, an S3 server in Python. It checks no signatures. The tests with
//! garage, which does, are in `garage.rs`.
#![allow(clippy::disallowed_methods, reason = "tests start programs and wait for them")]

mod checks;
mod locked;
mod server;
mod stage;

use crate::support::temp_dir;
use checks::Traits;
use server::Server;

const TRAITS: Traits = Traits {
    conditional_puts: "honoured",
    checks_signatures: false,
};

fn moto() -> Server {
    Server::start("moto")
}

#[test]
fn points_on_moto_are_made_read_and_copied() {
    checks::points_are_made_read_and_copied(&moto(), &TRAITS);
}

#[test]
fn pruned_data_on_moto_are_deleted_after_the_grace_period() {
    checks::pruned_data_are_deleted_after_the_grace_period(&moto());
}

#[test]
fn refusals_of_moto_are_explained() {
    checks::refusals_are_explained(&mut moto(), &TRAITS);
}

#[test]
fn long_lists_of_moto_are_complete() {
    checks::long_lists_are_complete(&moto());
}

#[test]
fn two_writers_on_moto_lose_nothing() {
    checks::two_writers_lose_nothing(&moto(), &TRAITS);
}

#[test]
fn locked_bucket_of_moto_keeps_what_a_collection_deletes() {
    locked::bucket_keeps_what_a_collection_deletes(&moto());
}

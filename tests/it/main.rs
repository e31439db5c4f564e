//! The verbs on a simulated hypervisor, with real files in a temporary folder.

#![allow(clippy::disallowed_methods, reason = "tests damage repositories by hand")]

mod backup_and_restore;
mod beside_merges;
mod classic;
mod cli_verify;
mod compare;
mod compressed;
mod continued;
mod copies;
mod crash;
mod damage;
mod encrypted;
mod environment;
mod firmware;
#[cfg(feature = "libvirt")]
mod first_minutes;
mod forever;
mod forged;
mod golden;
mod gone;
mod grouping;
mod hostile_text;
mod identity;
mod in_place;
mod in_place_onto;
mod kinds;
mod lab;
mod list;
mod mount;
mod no_rights;
mod open_files;
mod pack;
mod packages;
mod page_cache;
mod partial;
mod pins;
mod pools;
mod prune;
mod reconcile;
mod repositories;
mod repository;
mod retention;
mod scrub;
mod serve;
mod sets;
mod setup;
mod status;
mod stories;
mod targets;
mod tpm;
mod transfer;
mod two_repositories;
mod verify;
mod verify_memory;
mod waits;

//! Tests on real domains: in an embedded hypervisor, on a libvirtd started by the lab if none runs,
//! and with a small Linux guest.
//!
//! They fail, and are never skipped, if something is missing. `README.md` in this folder lists the
//! requirements.

#![cfg(feature = "libvirt")]
#![allow(
    clippy::disallowed_methods,
    reason = "the lab starts programs, waits for other processes, and keeps its own cache"
)]

mod chaos;
mod cli_backup;
mod cli_beside;
mod cli_boot;
mod cli_boot_proof;
mod cli_classic;
mod cli_classic_scrub;
mod cli_files;
mod cli_images;
mod cli_in_place;
mod cli_lab;
mod cli_mount;
mod cli_newer;
mod cli_pack;
mod cli_pool;
mod cli_prune;
mod cli_refusals;
mod cli_remote;
mod cli_stop;
mod cli_user;
mod clock;
mod copied_back;
mod daemon;
mod demo;
mod disasters;
mod embed;
mod encrypted;
mod guest;
mod guest_backup;
mod host;
mod host_define;
mod host_offline;
mod host_read;
mod host_repair;
mod kinds_lab;
mod leftovers;
mod leftovers_proofs;
mod loops;
mod migrated;
mod mount;
mod other_kinds;
mod owner;
mod partial;
mod process;
mod scrub;
mod scrub_command;
mod sets;
mod shared_images;
mod snapshots;
mod status;
mod targets;
mod test_driver;
mod tpm;
mod two_repositories;
mod unreachable;
mod verbs;

//! vmsnap makes incremental backups of libvirt domains and brings them back.
//!
//! Data flow:
//!
//! ```text
//! domain ─ libvirt job + checkpoint ─► NBD export ─► dirty extents ─► blocks ─► qcow2 writer ─► restore point ─► chain ─► period
//!                                                                                                                 │
//!             disk or new domain ◄── qcow2/raw writer ◄── blocks ◄── extents of the chain (newest wins) ◄─────────┘
//! ```

// Without libvirt nothing uses much of `host` and parts of the rooms below it. The build with libvirt
// finds what nothing uses at all.
#![cfg_attr(not(feature = "libvirt"), allow(dead_code, unused_imports))]

pub mod model;

pub mod host;
pub mod nbd;
mod wait;

pub mod image;
pub mod io;

pub mod repo;

pub mod ops;

pub mod cli;
#[cfg(feature = "libvirt")]
pub mod demo;

#[cfg(feature = "testkit")]
pub mod testkit;

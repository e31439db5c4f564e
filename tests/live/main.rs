//! Tests on real domains: a libvirtd of our own where none runs, and a small Linux guest.
//!
//! `README.md` beside this file tells what they need and what they leave (nothing).

#![cfg(feature = "libvirt")]
#![allow(
    clippy::disallowed_methods,
    reason = "the lab starts programs, waits for other processes, and keeps its own cache"
)]

mod daemon;
mod guest;
mod process;

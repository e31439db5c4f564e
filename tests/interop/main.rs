//! vmsnap against the programs of others: qemu-img, qemu-io, qemu-nbd, nbdkit. A program that is missing fails its tests.

mod check;
mod nbd;
mod nbd_memory;
mod nbd_nbdkit;
mod nbd_qemu;
mod qcow2;
mod qcow2_memory;
mod stories;
mod support;

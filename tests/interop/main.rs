//! vmsnap against other programs: qemu-img, qemu-io, qemu-nbd, nbdkit, libnbd, age, Python. A
//! missing program fails its tests.

mod by_hand;
mod check;
mod continued;
#[path = "../it/golden/data.rs"]
mod golden;
mod nbd;
mod nbd_memory;
mod nbd_nbdkit;
mod nbd_qemu;
mod pack;
mod qcow2;
mod qcow2_memory;
#[cfg(feature = "object-store")]
mod s3;
mod serve;
mod stories;
mod support;

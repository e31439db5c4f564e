//! Tests against real domains. They fail, and never skip, where QEMU or libvirt's driver is missing.

mod embed;
mod host;
mod host_define;
mod host_offline;
mod host_read;
mod host_repair;

#!/usr/bin/env bash
# Runs a program in a root folder, in new namespaces for mounts, processes and the host name.
#
#   unshare --mount --pid --uts --ipc --fork --kill-child \
#       scripts/in-root.sh ROOT [HOST=INSIDE]... -- PROGRAM [ARGUMENT]...
#
# HOST=INSIDE mounts a folder of the host in the root, read-only. When this process ends, the kernel
# ends all processes and mounts of the namespaces.
set -euo pipefail

root=$1
shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mount -t devtmpfs -o nosuid devtmpfs "$root/dev"
mkdir -p "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev tmpfs "$root/dev/shm"
mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs "$root/run"
while [ "$1" != -- ]; do
    inside=$root/${1#*=}
    mkdir -p "$inside"
    mount --bind -o ro "${1%%=*}" "$inside"
    shift
done
shift
hostname fresh

cd "$root"
mkdir -p .host
pivot_root . .host
cd /
umount -l /.host
rmdir /.host
hash -r

# This shell stays, because the first process must reap orphans.
status=0
"$@" </dev/null || status=$?
exit "$status"

#!/bin/sh
# busybox has RANDOM, and no path in this script holds a blank.
# shellcheck disable=SC3028,SC2231,SC2012
# /init of the test guest: the whole user space is busybox, this script and qemu-ga.
#
# Kernel command line:
#   vmsnap.mode=write     writes files to /data until stopped, prints "round N" after each
#   vmsnap.mode=verify    checks the files on /data, prints "verified N files, bad M, last round R", powers off
#   vmsnap.mode=hello     prints "hello" and powers off: a machine that boots this system
#   vmsnap.mount=OPTIONS  mount options of /data (verify mode; default "rw": the journal is replayed)
#   vmsnap.agent=answering|deaf|none   qemu-ga; something that reads its port and never answers; nothing
#   vmsnap.disk=DEVICE    the block device with /data (default /dev/vda)
#   vmsnap.hostname=NAME  the host name (default "guest")
#
# "init: system is up" is printed before any disk is used. In write mode the agent starts after the
# mount, so with a damaged file system there is a console but no agent.
#
# When /run/stop-writing exists, write mode remounts /data read-only and prints "stopped after
# round N".
#
# The files' protocol: what is named slot-S.round-N.sha256-HEX holds bytes of that digest in every state
# that the disk can be left in by a loss of power, and once "round N" stands on the console a file of
# round N or later is on the disk for good. Work in progress is named slot-S.part.

export PATH=/bin:/sbin:/usr/sbin
DATA=/data
SLOTS=24

fail() {
    echo "FAILED: $*"
    sync
    # A guest that writes stays up, so that its console can be read; one that verifies is waited for.
    [ "$mode" = verify ] && poweroff -f
    while :; do sleep 3600; done
}

option() { # NAME DEFAULT
    for word in $cmdline; do
        case $word in "$1="*) echo "${word#*=}"; return ;; esac
    done
    echo "$2"
}

prepare() {
    /bin/busybox --install -s /bin
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    mount -t tmpfs run /run
    # After the mounts, because the kernel gave us the console of the initramfs.
    exec >/dev/console 2>&1 </dev/null
    echo "init: system is up"
    read -r cmdline </proc/cmdline
    mode=$(option vmsnap.mode write)
    disk=$(option vmsnap.disk /dev/vda)
    hostname "$(option vmsnap.hostname guest)"
    while read -r module; do
        insmod "/modules/$module" || fail "cannot load $module"
    done </modules/order
    mkdir -p $DATA
}

wait_until() { # WHAT-IS-MISSING COMMAND...
    missing=$1
    shift
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -gt 600 ] && fail "$missing"
        sleep 0.1
    done
}

# There is no udev to make /dev/virtio-ports.
link_agent_port() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ]; then
            mkdir -p /dev/virtio-ports
            ln -sf "/dev/${port##*/}" /dev/virtio-ports/org.qemu.guest_agent.0
            return 0
        fi
    done
    return 1
}

start_agent() {
    case $(option vmsnap.agent answering) in
    none) return ;;
    deaf)
        wait_until "no agent port" link_agent_port
        # While the host is not connected reading ends at once; the port has to stay open all the same.
        { while :; do cat >/dev/null; sleep 0.5; done; } </dev/virtio-ports/org.qemu.guest_agent.0 &
        ;;
    *)
        wait_until "no agent port" link_agent_port
        {
            LD_LIBRARY_PATH=/lib64 qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run
            fail "qemu-ga has ended with $?"
        } &
        ;;
    esac
}

last_round() {
    ls $DATA | sed -n 's/^slot-.*\.round-\([0-9]*\)\.sha256-.*/\1/p' | sort -n | tail -n 1
}

# Random bytes with now and then a stretch of zeroes between: $1 the file, written from its start on
# over whatever is there.
fill() {
    blocks=$((1 + RANDOM % 256))
    dd if=/dev/urandom of="$1" bs=4k count=$blocks conv=notrunc 2>/dev/null || return 1
    if [ $((RANDOM % 4)) -eq 0 ]; then
        dd if=/dev/zero of="$1" bs=4k seek=$((blocks / 4)) count=$((blocks / 2)) conv=notrunc 2>/dev/null || return 1
    fi
}

# Makes $1 durable under its final name, and says so.
publish() {
    sync "$1" || return 1
    digest=$(sha256sum <"$1") || return 1
    mv "$1" "$DATA/slot-$slot.round-$round.sha256-${digest%% *}" || return 1
    sync $DATA
}

one_round() {
    part=$DATA/slot-$slot.part
    rm -f "$part"
    old=
    for file in $DATA/slot-$slot.round-*; do
        [ -e "$file" ] && old=$file
    done
    if [ -n "$old" ] && [ $((RANDOM % 2)) -eq 0 ]; then
        # Rewritten in place: the old name has to be gone from the disk before the first new byte.
        mv "$old" "$part" && sync $DATA && fill "$part" && publish "$part"
    else
        fill "$part" && publish "$part" && { [ -z "$old" ] || rm "$old"; }
    fi
}

write_until_stopped() {
    wait_until "no disk $disk" test -b "$disk"
    mount -t ext4 "$disk" $DATA || fail "cannot mount $disk"
    start_agent
    round=$(last_round)
    round=${round:-0}
    echo "writing from round $round on"
    until [ -e /run/stop-writing ]; do
        round=$((round + 1))
        # The slot of the oldest file, so that the newest ones are never in work.
        slot=$((round % SLOTS))
        one_round || fail "round $round: cannot write"
        echo "round $round"
        if [ $((RANDOM % 6)) -eq 0 ]; then
            rm -f $DATA/slot-$(((slot + 1 + RANDOM % (SLOTS / 2)) % SLOTS)).round-*
        fi
        [ $((round % 10)) -eq 0 ] && sync
        [ $((round % 25)) -eq 0 ] && fstrim $DATA
        sleep 0.05
    done
    mount -o remount,ro $DATA || fail "cannot remount $DATA read-only"
    echo "stopped after round $round"
    while :; do sleep 3600; done
}

verify() {
    wait_until "no disk $disk" test -b "$disk"
    options=$(option vmsnap.mount rw)
    mount -t ext4 -o "$options" "$disk" $DATA || fail "cannot mount $disk with $options"
    files=0
    bad=0
    for file in $DATA/slot-*.sha256-*; do
        [ -e "$file" ] || continue
        files=$((files + 1))
        digest=$(sha256sum <"$file")
        if [ "${digest%% *}" != "${file##*.sha256-}" ]; then
            bad=$((bad + 1))
            echo "bad: $file is $digest"
        fi
    done
    last=$(last_round)
    umount $DATA || fail "cannot unmount"
    echo "verified $files files, bad $bad, last round ${last:-0}"
    poweroff -f
}

prepare
case $mode in
write) write_until_stopped ;;
verify) verify ;;
hello) echo hello && poweroff -f ;;
*) fail "unknown mode $mode" ;;
esac

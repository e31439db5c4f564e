#!/usr/bin/env bash
# Makes golden sets with virtnbdbackup: backups of a small domain, and what its disks held then.
#
#   tests/data/make-sets.sh OUT COMMAND...
#
# COMMAND is virtnbdbackup, of any version from 1.9. Writes the folders `plain`, `lz4` and `copy`, and
# the expected content of each disk after each backup as `NAME.runs`: one line for each run of equal
# bytes (offset, length, byte, as decimal numbers), without zeroes, and a last line with the disk's
# length. Needs root, a libvirtd at qemu:///system, qemu-img, virsh, python3, and write access to /srv.
set -euo pipefail

out=$(realpath -m "$1")
shift
images=/srv/golden-sets
export HOME=$images
trap 'virsh -q destroy golden >/dev/null 2>&1 || true
    virsh -q undefine golden --checkpoints-metadata >/dev/null 2>&1 || true
    rm -rf "$images"' EXIT
mkdir -p "$images" "$out"

qemu-img create -q -f qcow2 -o cluster_size=4k "$images/vda.qcow2" 448K
qemu-img create -q -f qcow2 "$images/vdb.qcow2" 150K
truncate -s 40K "$images/vdc.img"
printf 'V%.0s' {1..4096} >"$images/vars.fd"
truncate -s 64K "$images/code.fd"
cat >"$images/golden.xml" <<XML
<domain type='qemu'>
  <name>golden</name>
  <uuid>6f0c2f7e-9d7b-4e0c-8a51-2d8f4f0a1b11</uuid>
  <memory unit='MiB'>16</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <loader readonly='yes' type='pflash'>$images/code.fd</loader>
    <nvram>$images/vars.fd</nvram>
  </os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/><source file='$images/vda.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='$images/vdb.qcow2'/><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='$images/vdc.img'/><target dev='vdc' bus='virtio'/>
    </disk>
  </devices>
</domain>
XML
virsh -q define "$images/golden.xml"

# Commands of qemu-io on a disk of the running domain, as if the guest did it.
guest() {
    local disk=$1 command
    shift
    for command in "$@"; do
        virsh qemu-monitor-command golden --hmp \
            "qemu-io -d /machine/peripheral/virtio-disk$disk/virtio-backend \"$command\""
    done
}
# A backup, and the content of the disks that it must have. The domain is paused.
number=0
backup() {
    local set=$1 disk
    shift
    "${virtnbdbackup[@]}" -d golden -o "$images/backups/$set" --scratchdir "$images" -n "$@" >"$images/log" 2>&1 ||
        { cat "$images/log" >&2 && exit 1; }
    [ "$(virsh domstate golden)" = "shut off" ] || { guest 0 flush && guest 1 flush && guest 2 flush; }
    for disk in vda.qcow2 vdb.qcow2 vdc.img; do
        qemu-img convert -U -O raw "$images/$disk" "$images/raw"
        runs "$images/raw" >"$out/$set.$number.${disk%.*}.runs"
    done
    number=$((number + 1))
}
runs() {
    python3 - "$1" <<'PY'
import itertools, sys
content = open(sys.argv[1], "rb").read()
offset = 0
for byte, run in itertools.groupby(content):
    length = len(list(run))
    if byte:
        print(offset, length, byte)
    offset += length
print(offset)
PY
}
virtnbdbackup=("$@")

virsh -q start golden --paused
guest 0 "write -P 0x11 0 16k" "write -P 0x12 130k 6k" "write -P 0x13 256k 20k"
guest 1 "write -P 0x21 64k 86k"
guest 2 "write -P 0x31 4k 8k"
backup plain -l full -r
guest 0 "write -P 0x14 10k 10k" "write -P 0x15 300k 4k"
backup plain -l inc
guest 0 "write -z -u 0 8k" "write -P 0 256k 8k" "write -P 0x16 440k 8k"
guest 1 "write -z 64k 64k" "write -P 0x22 0 1k"
backup plain -l inc
guest 0 "write -P 0x17 200k 4k"
backup plain -l diff
number=0
backup lz4 -l full -z
guest 0 "write -P 0x18 100k 30k"
backup lz4 -l inc -z
virsh -q destroy golden
number=0
backup copy -l full -r
# virtnbdbackup saves the firmware itself, too.
rm -f "$images"/backups/*/code.fd*
cp -r "$images/backups/." "$out"

#!/usr/bin/env bash
# Makes a golden repository with a vmsnap program: a small domain that stays shut off, three restore
# points and a copy.
#
#   tests/data/make.sh VMSNAP OUT
#
# Writes the repository's files to OUT. Images are written as `NAME.runs`: one line for each run of
# equal bytes (offset, length, byte, as decimal numbers), without zeroes, and a last line with the
# file's length. Needs qemu-io, virsh, python3, and write access to /srv.
set -euo pipefail

vmsnap=$(realpath "$1")
out=$2
images=/srv/golden
work=$(mktemp -d)
trap 'rm -rf "$work" "$images"' EXIT
mkdir -p "$work/libvirt/etc" "$images"
cat >"$work/libvirt/etc/qemu.conf" <<'CONF'
stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
user = "+0"
group = "+0"
dynamic_ownership = 0
remember_owner = 0
CONF
export LIBVIRT_LOG_OUTPUTS=4:file:/dev/null
uri="qemu:///embed?root=$work/libvirt"

qemu-img create -q -f qcow2 "$images/vda.qcow2" 256K
qemu-img create -q -f qcow2 "$images/vdb.qcow2" 150K
head -c 4096 /dev/zero | tr '\0' V >"$images/vars.fd"
truncate -s 64K "$images/code.fd"
cat >"$work/golden.xml" <<XML
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
      <driver name='qemu' type='qcow2'/><source file='$images/vda.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='$images/vdb.qcow2'/><target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
</domain>
XML
virsh -q -c "$uri" define "$work/golden.xml"

guest() { qemu-io -f qcow2 "$@" >/dev/null; }
backup() { "$vmsnap" --connect "$uri" backup golden --output "$work/backups" "$@"; }

guest -c "write -P 0x11 0 64k" -c "write -P 0x12 130k 5k" "$images/vda.qcow2"
guest -c "write -P 0x21 64k 86k" "$images/vdb.qcow2"
backup
guest -c "write -P 0x13 60k 10k" -c "write -z 128k 64k" "$images/vda.qcow2"
backup
guest -c "write -P 0x14 192k 64k" "$images/vda.qcow2"
guest -c "write -z 64k 64k" -c "write -P 0x22 0 1k" "$images/vdb.qcow2"
backup
backup --copy
"$vmsnap" verify golden --repository "$work/backups" --deep --all

rm -f "$work/backups/golden/.lock"
python3 - "$work/backups" "$out" <<'PY'
import itertools, os, sys
source, out = sys.argv[1:]
for folder, _, names in os.walk(source):
    to = os.path.join(out, os.path.relpath(folder, source))
    os.makedirs(to, exist_ok=True)
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            content = file.read()
        if not name.endswith((".qcow2", ".fd")):
            with open(os.path.join(to, name), "wb") as file:
                file.write(content)
            continue
        with open(os.path.join(to, name + ".runs"), "w") as file:
            offset = 0
            for byte, run in itertools.groupby(content):
                length = sum(1 for _ in run)
                if byte:
                    print(offset, length, byte, file=file)
                offset += length
            print(len(content), file=file)
PY

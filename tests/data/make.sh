#!/usr/bin/env bash
# Makes a golden repository with a vmsnap program: a small domain that stays shut off, three restore
# points and a copy.
#
#   tests/data/make.sh VMSNAP OUT
#
# Writes the repository's files to OUT. Images are written as `NAME.runs`: one line for each run of
# equal bytes (offset, length, byte, as decimal numbers), without zeroes, or of noise (offset, length,
# `noise`, offset in the noise), and a last line with the file's length. Needs qemu-io, virsh,
# python3, and write access to /srv.
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

qemu-img create -q -f qcow2 "$images/vda.qcow2" 448K
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

# 64 KiB that cannot be compressed, always the same.
cat >"$work/noise.py" <<'PY'
def noise(state=1):
    out = bytearray()
    for _ in range(64 << 10):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out.append(state >> 56)
    return bytes(out)
PY
export PYTHONPATH=$work PYTHONDONTWRITEBYTECODE=1
python3 -c 'import noise, sys; sys.stdout.buffer.write(noise.noise())' >"$work/noise"

guest() { qemu-io -f qcow2 "$@" >/dev/null; }
backup() { "$vmsnap" --connect "$uri" backup golden --output "$work/backups" "$@"; }

guest -c "write -P 0x11 0 64k" -c "write -P 0x12 130k 5k" "$images/vda.qcow2"
guest -c "write -s $work/noise 256k 64k" -c "write -P 0x15 320k 128k" "$images/vda.qcow2"
guest -c "write -s $work/noise 320k 40k" -c "write -s $work/noise 384k 40k" "$images/vda.qcow2"
guest -c "write -P 0x21 64k 86k" "$images/vdb.qcow2"
backup
guest -c "write -P 0x13 60k 10k" -c "write -z 128k 64k" "$images/vda.qcow2"
backup --compress none
guest -c "write -P 0x14 192k 64k" -c "write -P 0x16 320k 4k" "$images/vda.qcow2"
guest -c "write -z 64k 64k" -c "write -P 0x22 0 1k" "$images/vdb.qcow2"
backup
backup --copy
"$vmsnap" verify golden --repository "$work/backups" --deep --all

rm -f "$work/backups/golden/.lock"
python3 - "$work/backups" "$out" <<'PY'
import itertools, os, sys
from noise import noise
NOISE = noise()
# A place is noise if this many bytes are.
CLEAR = 8
source, out = sys.argv[1:]

def noise_at(content, offset):
    """The place in the noise, and how many bytes follow it here as they do there."""
    start = NOISE.find(content[offset:offset + CLEAR])
    if start < 0 or offset + CLEAR > len(content):
        return 0, 0
    pairs = zip(NOISE[start:], content[offset:])
    return start, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

def runs(content):
    offset = 0
    while offset < len(content):
        start, length = noise_at(content, offset)
        if length:
            yield f"{offset} {length} noise {start}"
        else:
            byte = content[offset]
            end = offset + 1
            while end < len(content) and content[end] == byte:
                end += 1
            length = end - offset
            if byte:
                yield f"{offset} {length} {byte}"
        offset += length
    yield str(len(content))

for folder, _, names in os.walk(source):
    to = os.path.join(out, os.path.relpath(folder, source))
    os.makedirs(to, exist_ok=True)
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            content = file.read()
        if name.endswith((".qcow2", ".fd")):
            name, content = name + ".runs", "".join(line + "\n" for line in runs(content)).encode()
        with open(os.path.join(to, name), "wb") as file:
            file.write(content)
PY

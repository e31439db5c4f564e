#!/usr/bin/env bash
# Makes two golden pack repositories with a vmsnap program: one without encryption, and one for the
# passphrase "golden passphrase". Both hold two domains that stay shut off.
#
#   tests/data/make-pack.sh VMSNAP OUT
#
# Writes them to OUT/open and OUT/encrypted. Needs
# qemu-io, virsh, python3, and write access to /srv.
set -euo pipefail

vmsnap=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
images=/srv/golden
work=$(mktemp -d)
trap 'rm -rf "$work" "$images"' EXIT
export VMSNAP_STATE=$work/state VMSNAP_CACHE=$work/cache
mkdir -p "$work/libvirt/etc"
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
printf 'golden passphrase\n' >"$work/passphrase"

guest() { qemu-io -f qcow2 "$@" >/dev/null; }
backup() { "$vmsnap" --connect "$uri" backup "$1" --output "$2" "${secret[@]}" "${@:3}"; sleep 1; }

# Defines a domain with new disks: NAME, its UUID, and for each disk its target and size.
define() {
	local name=$1 uuid=$2 disks=
	shift 2
	while [ $# -gt 0 ]; do
		qemu-img create -q -f qcow2 "$images/$name-$1.qcow2" "$2"
		disks+="<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
		disks+="<source file='$images/$name-$1.qcow2'/><target dev='$1' bus='virtio'/></disk>"
		shift 2
	done
	cat >"$work/$name.xml" <<XML
<domain type='qemu'>
  <name>$name</name>
  <uuid>$uuid</uuid>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>$disks</devices>
</domain>
XML
	virsh -q -c "$uri" define "$work/$name.xml"
}

# Fills a repository: a restore point that was copied from a folder, a full and two incremental ones
# of one domain, of which one is pinned; and of the other domain three, of which the first was removed.
fill() {
	local pack=pack:$1
	mkdir -p "$images"
	define golden 6f0c2f7e-9d7b-4e0c-8a51-2d8f4f0a1b11 vda 448K vdb 150K
	define small 6f0c2f7e-9d7b-4e0c-8a51-2d8f4f0a1b12 vda 192K
	local vda=$images/golden-vda.qcow2 vdb=$images/golden-vdb.qcow2 small=$images/small-vda.qcow2
	secret=()
	guest -c "write -P 0x11 0 64k" -c "write -P 0x12 130k 5k" "$vda"
	guest -c "write -P 0x21 64k 86k" "$vdb"
	backup golden "$work/images"
	"$vmsnap" init "$pack" "${init[@]}"
	secret=("${opens[@]}")
	"$vmsnap" copy golden --from "$work/images" --to "$pack" "${secret[@]}"
	guest -c "write -P 0x13 60k 10k" "$vda"
	backup golden "$pack"
	guest -c "write -z 128k 64k" -c "write -P 0x15 320k 128k" "$vda"
	backup golden "$pack"
	guest -c "write -P 0x14 192k 64k" "$vda"
	guest -c "write -z 64k 64k" -c "write -P 0x22 0 1k" "$vdb"
	backup golden "$pack"
	guest -c "write -P 0x31 0 128k" "$small"
	backup small "$pack"
	guest -c "write -P 0x32 64k 64k" "$small"
	backup small "$pack"
	guest -c "write -P 0x33 128k 64k" "$small"
	backup small "$pack"
	"$vmsnap" pin golden --repository "$pack" "${secret[@]}" --note "keep this" "$(ids "$pack" golden | sed -n 3p)"
	"$vmsnap" prune small --repository "$pack" "${secret[@]}" --keep-last 2 --no-collect
	"$vmsnap" verify --repository "$pack" "${secret[@]}" --deep --all
	for domain in golden small; do
		virsh -q -c "$uri" undefine "$domain" --checkpoints-metadata
	done
	rm -rf "$images" "$work/images"
}

# The ids of a domain's restore points, oldest first.
ids() {
	"$vmsnap" list "$2" --repository "$1" "${secret[@]}" --json |
		python3 -c 'import json, sys; [print(p["id"]) for p in json.load(sys.stdin)["domains"][0]["restorePoints"]]'
}

init=(--no-encryption) opens=()
fill "$out/open"
init=(--passphrase-file "$work/passphrase") opens=(--passphrase-file "$work/passphrase")
fill "$out/encrypted"

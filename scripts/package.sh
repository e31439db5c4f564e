#!/usr/bin/env bash
# Builds a .deb, an .rpm and the static rescue program into target/package. `make package` calls it.
#
# Needs `scripts/setup.sh build package`. The packaging tools are crates; missing ones are installed
# into cargo's own folder. DEBFULLNAME and DEBEMAIL set another maintainer of the .deb.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CARGO=${CARGO:-cargo}
CARGO_BIN=${CARGO_HOME:-$HOME/.cargo}/bin
TARGET=${CARGO_TARGET_DIR:-target}
CARGO_DEB=3.8.0
CARGO_GENERATE_RPM=0.21.1

OUT=target/package
# Files of both packages that are not in git. Cargo.toml names them.
FILES=$OUT/files

fail() {
    echo "package: $*" >&2
    exit 1
}

# The path of a crate's program in this version, from PATH or cargo's own folder.
tool() {
    local crate=$1 version=$2 program
    for program in "$(command -v "$crate" || true)" "$CARGO_BIN/$crate"; do
        if [ -x "$program" ] && [ "$("$program" --version | awk '{ print $NF }')" = "$version" ]; then
            echo "$program"
            return
        fi
    done
    # Their own release profiles take several times longer to build.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        "$CARGO" install --quiet --locked "$crate@$version" >&2
    echo "$CARGO_BIN/$crate"
}

# Writes the manual pages, completions and changelogs of the packages.
generate() {
    local program=$1 page
    rm -rf "$FILES"
    mkdir -p "$FILES"/{man,completions}
    strip -o "$FILES/vmsnap" "$program"
    "$program" man >"$FILES/man/vmsnap.1"
    # The main page refers to the page of each command.
    sed -nE 's/^vmsnap\\-([a-z]+)\(1\)$/\1/p' "$FILES/man/vmsnap.1" | while read -r page; do
        "$program" man "$page" >"$FILES/man/vmsnap-$page.1"
    done
    gzip -9n "$FILES"/man/*.1
    "$program" completions bash >"$FILES/completions/vmsnap"
    "$program" completions zsh >"$FILES/completions/_vmsnap"
    "$program" completions fish >"$FILES/completions/vmsnap.fish"
    gzip -9nc CHANGELOG.md >"$FILES/changelog.gz"
    {
        echo "vmsnap ($VERSION-1) unstable; urgency=medium"
        echo
        echo "  * The changes are in changelog.gz."
        echo
        echo " -- $MAINTAINER  $(date -R -u -d "@$SOURCE_DATE_EPOCH")"
    } >"$FILES/changelog.Debian"
}

make_deb() {
    local deb
    deb=$OUT/vmsnap_$VERSION-1_$(dpkg --print-architecture).deb
    "$(tool cargo-deb "$CARGO_DEB")" deb --no-build --locked --maintainer "$MAINTAINER" --output "$deb"
    scripts/floor.sh "$deb"
    if command -v lintian >/dev/null; then
        lintian --allow-root --fail-on error --tag-display-limit 0 "$deb"
    else
        echo "note: $deb was not checked, because lintian is not installed" >&2
    fi
}

make_rpm() {
    local rpm digest
    rpm=$OUT/vmsnap-$VERSION-1.$(uname -m).rpm
    # Its own search also requires the libraries of libraries, which differ between distributions.
    "$(tool cargo-generate-rpm "$CARGO_GENERATE_RPM")" generate-rpm --auto-req find-requires --output "$rpm"
    rpm -K --nosignature "$rpm"
    digest=$(rpm -qp --qf '[%{FILEDIGESTS} %{FILENAMES}\n]' "$rpm" | awk '$2 == "/usr/bin/vmsnap" { print $1 }')
    [ "$digest" = "$(sha256sum <"$FILES/vmsnap" | cut -d ' ' -f 1)" ] || fail "$rpm does not contain the program"
    rpm -qp --requires "$rpm" | grep -q '^libvirt\.so\.0(' || fail "$rpm does not require libvirt"
}

# Backs up a shut-off domain of libvirt's test driver and restores it with the rescue program alone.
check_rescue() {
    local program=$1 rescue=$2 lab
    file "$rescue" | grep -Eq 'statically linked|static-pie linked' || fail "$rescue is not static: $(file "$rescue")"
    ldd "$rescue" 2>&1 | grep -Eq 'statically linked|not a dynamic executable' || fail "$rescue needs libraries"
    lab=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of this call
    trap "rm -rf '$lab'" EXIT
    qemu-img create -q -f qcow2 "$lab/disk.qcow2" 8M
    qemu-io -c 'write -P 0x41 1M 2M' -c 'write -P 0x42 5M 64k' "$lab/disk.qcow2" >"$lab/qemu-io.log"
    cat >"$lab/node.xml" <<XML
<node><domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
  <name>vm1</name><memory>8192</memory><os><type>hvm</type></os>
  <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
    <source file='$lab/disk.qcow2'/><target dev='vda' bus='virtio'/></disk></devices>
  <test:runstate>5</test:runstate></domain></node>
XML
    mkdir "$lab/backups"
    "$program" backup vm1 --connect "test://$lab/node.xml" --output "$lab/backups" --quiet
    env -i "$rescue" list --repository "$lab/backups" | grep -q full || fail "$rescue lists no restore point"
    env -i "$rescue" verify --repository "$lab/backups" --quiet
    env -i "$rescue" restore vm1 --repository "$lab/backups" --to "$lab/restored" --quiet
    qemu-img compare -q "$lab/disk.qcow2" "$lab/restored/vda.qcow2" || fail "$rescue restored other bytes"
}

make_rescue() {
    local host rescue
    host=$(rustc -vV | sed -n 's/^host: //p')
    RUSTFLAGS="-C target-feature=+crt-static" "$CARGO" build --release --locked --no-default-features --target "$host"
    rescue=$OUT/vmsnap-rescue-$VERSION-$(uname -m)
    strip -o "$rescue" "$TARGET/$host/release/vmsnap"
    check_rescue "$TARGET/release/vmsnap" "$PWD/$rescue"
}

dpkg-query -W libvirt0 >/dev/null 2>&1 ||
    fail "build packages on Debian 12 or Ubuntu 22.04: dpkg must know the libraries' versions"

"$CARGO" build --release --locked
program=$TARGET/release/vmsnap
VERSION=$("$program" --version | awk '{ print $2 }')
# The same sources make the same packages.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}
export SOURCE_DATE_EPOCH
MAINTAINER=$(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)
[ -z "${DEBEMAIL:-}" ] || MAINTAINER="${DEBFULLNAME:-The vmsnap authors} <$DEBEMAIL>"

mkdir -p "$OUT"
rm -f "$OUT"/vmsnap*
generate "$program"
scripts/floor.sh "$FILES/vmsnap"
make_deb
make_rpm
make_rescue
(cd "$OUT" && sha256sum vmsnap* >SHA256SUMS && ls -l vmsnap* SHA256SUMS)

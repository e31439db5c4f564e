#!/usr/bin/env bash
# Runs the README's commands in bare Debian roots, which it creates and removes.
#
#   scripts/fresh.sh
#
#   FRESH_ROOTS   the releases [bookworm trixie]
#   FRESH_TESTS   some: a few live tests after the demo; all: `make test`; none [some]
#   FRESH_PACKAGE a .deb to try in each bare root; none [built with `make package` if possible]
#   FRESH_DIR     the folder of the roots; packed ones stay there [~/.cache/vmsnap-fresh]
#   FRESH_MIRROR  the Debian mirror [from this machine's apt, else http://deb.debian.org/debian]
#
# Needs root, debootstrap (setup.sh installs it), a Debian mirror, and some GB of disk. The roots
# see nothing of this machine except its Rust toolchain and cargo registry, read-only.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly ROOTS=${FRESH_ROOTS:-bookworm trixie}
readonly TESTS=${FRESH_TESTS:-some}
readonly DIR=${FRESH_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vmsnap-fresh}
readonly CARGO=${CARGO:-cargo}
readonly FALLBACK_MIRROR=http://deb.debian.org/debian
# Random stories, killed runs, the guest, shut-off domains, the classic spelling.
readonly SOME_TESTS=(verbs::random verbs::interrupted guest_backup host_offline cli_classic)
# The package tests the optimized program, so the roots' own builds save time.
readonly QUICK_BUILD=(CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=false)
# Packed roots older than this many days are rebuilt.
readonly KEEP_DAYS=14

fail() {
    echo "fresh: $*" >&2
    exit 1
}

note() {
    echo "fresh: note: $*" >&2
}

# The process of the running part, and the unpacked root.
job='' unpacked=''

# Ends a part and removes its root. When its first process ends, the kernel ends all others.
clean_up() {
    local first=''
    if [ -n "$job" ]; then
        first=$(cat "/proc/$job/task/$job/children" 2>/dev/null) || true
        # shellcheck disable=SC2086 # a list of process ids
        kill -KILL ${first:-$job} 2>/dev/null || true
        wait "$job" 2>/dev/null || true
        job=''
    fi
    if [ -n "$unpacked" ]; then
        rm -rf --one-file-system "$unpacked"
        unpacked=''
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Runs a program in its own namespaces. Its processes end with this script, even if it is killed.
alone() {
    local status=0
    # Without job control a background process would ignore Ctrl-C.
    set -m
    setpriv --pdeathsig KILL unshare --mount --pid --uts --ipc --fork --kill-child "$@" </dev/null &
    job=$!
    set +m
    wait "$job" || status=$?
    job=''
    return "$status"
}

# Runs a program in the unpacked root.
inside() {
    local shared=("$sysroot=/opt/rust" "$registry=/root/.cargo/registry") words=(env -i) name
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY TERM; do
        [ -z "${!name:-}" ] || words+=("$name=${!name}")
    done
    words+=(HOME=/root LANG=C.UTF-8 RUST_BACKTRACE=1 CARGO_NET_OFFLINE=true
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
    alone scripts/in-root.sh "$unpacked" "${shared[@]}" -- "${words[@]}" "$@"
}

results=()
failures=0

# part LABEL PROGRAM...: runs a part and records its duration and result.
part() {
    local label=$1 start=$SECONDS status=0 word=ok
    shift
    printf '\n== %s\n' "$label"
    "$@" || status=$?
    if [ "$status" -ne 0 ]; then
        word="failed with exit code $status"
        failures=$((failures + 1))
    fi
    results+=("$(printf '%-40s %5d s  %s' "$label" $((SECONDS - start)) "$word")")
    printf '== %s: %s after %d s\n' "$label" "$word" $((SECONDS - start))
    return "$status"
}

# The first mirror in this machine's apt configuration that serves packages of this label.
mirror_of() {
    # shellcheck disable=SC2016 # apt-get's own variable
    apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' "Label: $1" 2>/dev/null | sed -n '1s,/*$,,p' || true
}

# The network settings of this machine's apt, which apt in a root needs too.
apt_settings() {
    apt-config dump 2>/dev/null | grep -E '^Acquire::(https?::|Check-|Retries)' || true
}

sources() {
    echo "deb $mirror $1 main"
    echo "deb $mirror $1-updates main"
    echo "deb $security $1-security main"
}

# Builds a packed bare root unless a recent one exists: Debian's minimal set, no package lists.
pack() {
    local release=$1 packed=$2 name
    name=$(basename "$packed")
    find "$DIR" -maxdepth 1 -name "$release-*.tar" \( ! -name "$name" -o -mtime +"$KEEP_DAYS" \) -delete
    if [ -s "$packed" ]; then
        echo "from $(date -r "$packed" '+%F')"
        return
    fi
    unpacked=$DIR/root-$release
    if ! alone debootstrap --variant=minbase "$release" "$unpacked" "$mirror" >"$DIR/debootstrap.log" 2>&1; then
        tail -n 20 "$DIR/debootstrap.log" >&2
        fail "debootstrap could not make a root of $release"
    fi
    sources "$release" >"$unpacked/etc/apt/sources.list"
    apt_settings >"$unpacked/etc/apt/apt.conf.d/90fresh"
    rm -rf "$unpacked"/var/lib/apt/lists/* "$unpacked"/var/cache/apt/archives/*.deb
    tar -C "$unpacked" --one-file-system -cf "$packed.new" . || fail "cannot pack the root of $release"
    mv "$packed.new" "$packed"
    clean_up
}

# Unpacks a bare root for the next part.
unpack() {
    unpacked=$DIR/root-$1
    mkdir -p "$unpacked"
    tar -C "$unpacked" -xf "$2"
    cp -L /etc/resolv.conf "$unpacked/etc/resolv.conf"
    printf '127.0.0.1 localhost fresh\n::1 localhost\n' >"$unpacked/etc/hosts"
    echo fresh >"$unpacked/etc/hostname"
}

# The steps of a user on a new machine before the README's first command.
fetch_sources() {
    git clone --quiet --no-hardlinks . "$unpacked/root/vmsnap" || return 1
    git -C "$unpacked/root/vmsnap" checkout --quiet --detach "$commit" || return 1
    inside sh -c 'apt-get update -q && apt-get install -y -q --no-install-recommends make' >"$DIR/apt.log" 2>&1 || {
        tail -n 20 "$DIR/apt.log" >&2
        return 1
    }
}

# Fails if a filter matches no test, because cargo would succeed.
some_tests() {
    # shellcheck disable=SC2016 # expanded by the shell in the root
    inside bash -euc 'cd /root/vmsnap; scripts/setup.sh build demo test
        for name; do
            found=$(cargo test --quiet --locked --test live -- --list "$name" | grep -c ": test$") || true
            [ "$found" -gt 0 ] || { echo "no live test is named $name" >&2; exit 1; }
        done
        cargo test --locked --test live -- "$@"' bash "${SOME_TESTS[@]}"
}

# Only a package built on the oldest releases can be installed on all.
can_package() {
    local ID='' VERSION_ID=''
    # shellcheck source=/dev/null
    . /etc/os-release
    case "$ID $VERSION_ID" in
    "debian 12" | "ubuntu 22.04") ;;
    *) return 1 ;;
    esac
}

make_package() {
    make --no-print-directory package || return 1
    # The newest one: packages of older versions may be there.
    package=$(find target/package -maxdepth 1 -name '*.deb' -printf '%T@ %p\n' | sort -n | sed -n '$s/^[^ ]* //p')
    [ -n "$package" ]
}

try_release() {
    local release=$1 packed
    packed=$DIR/$release-$(printf '%s' "$(sources "$release")$(apt_settings)" | sha256sum | cut -c1-12).tar
    part "$release: bare root" pack "$release" "$packed" || return 0
    if [ -n "$package" ]; then
        unpack "$release" "$packed"
        install -D -m 0755 scripts/try-package.sh "$unpacked/root/try-package.sh"
        cp "$package" "$unpacked/root/"
        part "$release: package" inside bash /root/try-package.sh "/root/$(basename "$package")" || true
        clean_up
    fi
    unpack "$release" "$packed"
    part "$release: sources and make" fetch_sources || return 0
    part "$release: make demo" inside env "${QUICK_BUILD[@]}" make -C /root/vmsnap demo || true
    case $TESTS in
    some) part "$release: some live tests" some_tests || true ;;
    all) part "$release: make test" inside make -C /root/vmsnap test || true ;;
    esac
    clean_up
}

case $TESTS in
some | all | none) ;;
*) echo "fresh: FRESH_TESTS must be some, all or none, not '$TESTS'" >&2; exit 64 ;;
esac
[ -n "${ROOTS// /}" ] || { echo "fresh: FRESH_ROOTS names no release" >&2; exit 64; }
for release in $ROOTS; do
    [[ $release =~ ^[a-z]+$ ]] || { echo "fresh: '$release' in FRESH_ROOTS is not the name of a release" >&2; exit 64; }
done
[ "$(id -u)" = 0 ] || fail "run as root: sudo make fresh"
[ "$(uname -m)" = x86_64 ] || fail "this needs an x86-64 machine"
scripts/setup.sh fresh
for release in $ROOTS; do
    [ -e "/usr/share/debootstrap/scripts/$release" ] || fail "debootstrap does not know the release '$release'"
done
[ -c /dev/kvm ] || note "there is no /dev/kvm: QEMU emulates the processor, which takes longer"

mkdir -p "$DIR"
exec {lock}>"$DIR/lock"
flock --nonblock "$lock" || { note "waiting for another run in $DIR"; flock "$lock"; }
# A killed run leaves its root.
rm -rf --one-file-system "$DIR"/root-* "$DIR"/*.tar.new

mirror=${FRESH_MIRROR:-$(mirror_of Debian)}
mirror=${mirror:-$FALLBACK_MIRROR}
security=$(mirror_of Debian-Security)
security=${security:-${FALLBACK_MIRROR}-security}
if [ -z "${http_proxy:-}" ]; then
    eval "$(apt-config shell http_proxy Acquire::http::Proxy 2>/dev/null || true)"
    [ -z "${http_proxy:-}" ] || export http_proxy
fi
for release in $ROOTS; do
    wget -q --timeout=30 --tries=2 -O /dev/null "$mirror/dists/$release/InRelease" ||
        fail "cannot reach the Debian mirror: $mirror/dists/$release/InRelease (FRESH_MIRROR names another one)"
done

sysroot=$(rustc --print sysroot 2>/dev/null) || fail "rustc is missing"
if [ "$sysroot" = /usr ] || [ ! -x "$sysroot/bin/cargo" ]; then
    fail "the roots cannot use the Rust in $sysroot: install Rust with rustup"
fi
"$CARGO" fetch --quiet --locked || fail "cargo cannot fetch the dependencies"
registry=${CARGO_HOME:-$HOME/.cargo}/registry

commit=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || note "uncommitted changes are not tested"

package=''
case ${FRESH_PACKAGE:-} in
none) ;;
'')
    if [ ! -x scripts/package.sh ]; then
        note "these sources cannot build a package"
    elif can_package; then
        part "make package" make_package || true
    else
        note "no package is tested: it must be built on Debian 12 or Ubuntu 22.04"
    fi
    ;;
*)
    [ -s "$FRESH_PACKAGE" ] || fail "there is no package $FRESH_PACKAGE"
    package=$FRESH_PACKAGE
    ;;
esac

for release in $ROOTS; do
    try_release "$release"
done

printf '\nfresh: %s\n' "$(git log -1 --format='%h %s' "$commit")"
printf '  %s\n' "${results[@]}"
[ "$failures" -eq 0 ] || fail "$failures of ${#results[@]} parts failed"
echo "fresh: all is well"

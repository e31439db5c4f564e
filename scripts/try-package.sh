#!/usr/bin/env bash
# Installs a .deb of vmsnap as a user would, tries it, removes it, and checks that nothing remains.
#
#   scripts/try-package.sh DEB
#
# Run it as root in a temporary root of Debian 12, Ubuntu 22.04 or a newer release with /proc, /sys
# and /dev: it installs QEMU and libvirt's driver there.
set -euo pipefail

fail() {
    echo "try-package: $*" >&2
    exit 1
}

step() {
    printf '\n== %s\n' "$*"
}

[ $# -eq 1 ] || { echo "usage: $0 DEB" >&2; exit 64; }
[ "$(id -u)" = 0 ] || fail "only root can install packages"
[ -s "$1" ] || fail "the package $1 is missing or empty"
deb=$(realpath "$1")
! command -v vmsnap >/dev/null || fail "vmsnap is installed already: use a bare root"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# All paths except the records of apt and dpkg, and libvirt's folder in /run. libvirt's driver
# creates that folder for every program of root; it disappears with the next boot. sort has its
# temporary files where find does not look.
paths() {
    find / \( -path /proc -o -path /sys -o -path /dev -o -path "$work" -o -path /run/libvirt -o -path /var/lib/dpkg -o -path /var/lib/apt \
        -o -path /var/cache/apt -o -path /var/cache/debconf -o -path /var/log \) -prune -o -print | LC_ALL=C sort --temporary-directory="$work"
}

apt_install() {
    apt-get install -y -q "$@" >"$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; fail "apt-get install $* failed"; }
}

# Whether a compressed or plain file has content.
is_filled() {
    case $1 in
    *.gz) [ "$(gzip -dc "$1" | wc -c)" -gt 0 ] ;;
    *) [ -s "$1" ] ;;
    esac
}

step "apt-get install $(basename "$deb")"
apt-get update -q >"$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; fail "apt-get update failed"; }
apt_install "$deb"
dpkg -L vmsnap >"$work/owned"
version=$(dpkg-query -W -f '${Version}' vmsnap)
[ "$(vmsnap --version)" = "vmsnap ${version%-*}" ] || fail "vmsnap --version says $(vmsnap --version), the package is $version"
vmsnap --version

step "manual pages, completions and documents"
while read -r path; do
    [ -d "$path" ] || is_filled "$path" || fail "$path is empty or missing"
done <"$work/owned"
vmsnap man | sed -nE 's/^vmsnap\\-([a-z]+)\(1\)$/vmsnap-\1/p' >"$work/pages"
echo vmsnap >>"$work/pages"
[ "$(wc -l <"$work/pages")" -gt 5 ] || fail "the main page names no commands"
while read -r page; do
    gzip -dc "/usr/share/man/man1/$page.1.gz" | grep -q "^\.TH $page 1" || fail "there is no manual page $page(1)"
done <"$work/pages"
bash -c '. /usr/share/bash-completion/completions/vmsnap && complete -p vmsnap' >/dev/null || fail "bash does not complete vmsnap"
for file in zsh/vendor-completions/_vmsnap fish/vendor_completions.d/vmsnap.fish doc/vmsnap/README.md doc/vmsnap/copyright \
    doc/vmsnap/changelog.gz doc/vmsnap/changelog.Debian.gz; do
    is_filled "/usr/share/$file" || fail "/usr/share/$file is empty or missing"
done
echo "$(wc -l <"$work/pages") pages"

step "nothing starts by itself"
! grep -E '^/etc/|systemd|cron' "$work/owned" || fail "the package holds configuration or units"
for script in preinst postinst prerm postrm; do
    [ ! -e "/var/lib/dpkg/info/vmsnap.$script" ] || fail "the package has a $script script"
done

step "vmsnap demo names what it needs"
status=0
vmsnap demo >"$work/demo.log" 2>&1 || status=$?
cat "$work/demo.log"
[ "$status" -eq 4 ] || fail "vmsnap demo ended with exit code $status without QEMU; 4 was expected"
packages=$(sed -nE 's/.*apt-get install --no-install-recommends ([a-z0-9 -]+) \(Debian.*/\1/p' "$work/demo.log")
[ -n "$packages" ] || fail "vmsnap demo names no packages"

step "apt-get install --no-install-recommends $packages"
# shellcheck disable=SC2086 # a list of words
apt_install --no-install-recommends $packages
paths >"$work/before"

step "vmsnap demo"
vmsnap demo

step "apt-get purge vmsnap"
apt-get purge -y -q vmsnap >"$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; fail "apt-get purge failed"; }
paths >"$work/after"
LC_ALL=C comm -13 "$work/before" "$work/after" >"$work/left"
[ ! -s "$work/left" ] || { cat "$work/left" >&2; fail "vmsnap demo or the package left these paths"; }
LC_ALL=C comm -23 "$work/before" "$work/after" >"$work/gone"
LC_ALL=C sort "$work/owned" | LC_ALL=C comm -13 - "$work/gone" >"$work/others"
[ ! -s "$work/others" ] || { cat "$work/others" >&2; fail "these paths disappeared, but did not belong to the package"; }
apt-get autoremove -y -q >"$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; fail "apt-get autoremove failed"; }
find / \( -path /proc -o -path /sys -o -path /dev -o -path "$work" -o -path "$deb" \) -prune -o -iname '*vmsnap*' -print >"$work/named"
[ ! -s "$work/named" ] || { cat "$work/named" >&2; fail "these paths still carry the name vmsnap"; }

step "the package is good: purging it removed its $(wc -l <"$work/gone") paths and left nothing"

#!/usr/bin/env bash
# Checks that a program or a .deb runs on the oldest supported releases: Debian 12 and Ubuntu 22.04.
#
#   scripts/floor.sh FILE...
#
# A .deb may depend only on packages and versions that both releases have. Any other file is taken
# for a program, which may need only symbols of their glibc and libvirt.
set -euo pipefail

# The older version of each: that of Ubuntu 22.04.
declare -A SYMBOLS=([GLIBC]=2.35 [LIBVIRT]=8.0.0 [LIBVIRT_QEMU]=8.0.0 [GCC]=12.0.0)
declare -A PACKAGES=([libc6]=2.35 [libgcc-s1]=12 [libvirt0]=8.0.0)

ADVICE="Build on Debian 12 or Ubuntu 22.04, or avoid the newer symbols and packages."

is_at_most() {
    [ "$(printf '%s\n' "$1" "$2" | sort -V | tail -n 1)" = "$2" ]
}

# The symbol versions that the dynamic linker needs, one per line, as "GLIBC 2.34".
required() {
    objdump -p "$1" | awk '/^Version References:/ { on = 1 } on && NF == 4 { print $4 }' |
        sed -E 's/_([^_]*)$/ \1/' | sort -u
}

check_program() {
    local library version count=0 status=0
    while read -r library version; do
        count=$((count + 1))
        if [ -z "${SYMBOLS[$library]+known}" ]; then
            echo "$1 needs ${library}_$version, and $0 has no limit for $library." >&2
            status=1
        elif ! is_at_most "$version" "${SYMBOLS[$library]}"; then
            echo "$1 needs ${library}_$version. Ubuntu 22.04 has at most ${library}_${SYMBOLS[$library]}." >&2
            status=1
        fi
    done < <(required "$1")
    if [ "$count" -eq 0 ]; then
        echo "$1 requires no symbol versions: is it a dynamic program?" >&2
        status=1
    fi
    return "$status"
}

check_deb() {
    local depends package version status=0
    depends=$(dpkg-deb -f "$1" Depends)
    [ -n "$depends" ] || { echo "$1 depends on nothing: dpkg-shlibdeps has not run." >&2; return 1; }
    # Turns "libc6 (>= 2.34), libvirt0 (>= 6.0.0)" into one per line, as "libc6 2.34".
    while read -r package version; do
        if [ -z "${PACKAGES[$package]+known}" ]; then
            echo "$1 depends on $package, and $0 has no limit for it." >&2
            status=1
        elif [ -n "$version" ] && ! is_at_most "$version" "${PACKAGES[$package]}"; then
            echo "$1 depends on $package $version. Ubuntu 22.04 has ${PACKAGES[$package]}." >&2
            status=1
        fi
    done < <(printf '%s\n' "$depends" | tr ',' '\n' | sed -E 's/^ +//; s/ \(>= *([^)]*)\)/ \1/')
    return "$status"
}

[ $# -gt 0 ] || { echo "usage: $0 FILE..." >&2; exit 64; }
failed=0
for file in "$@"; do
    case $file in
    *.deb) check_deb "$file" || failed=1 ;;
    *) check_program "$file" || failed=1 ;;
    esac
done
[ "$failed" -eq 0 ] || { echo "$ADVICE" >&2; exit 1; }

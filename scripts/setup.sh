#!/usr/bin/env bash
# Installs missing packages of Debian or Ubuntu as root. Without root or apt-get it names them and
# fails.
#
#   scripts/setup.sh build|check|demo|test|bench|fresh|package...
#
#   build    to compile vmsnap
#   check    shellcheck
#   demo     libvirt's QEMU driver and QEMU. Debian 12, Ubuntu 22.04 and 24.04 have a part of the
#            driver in libvirt-daemon; no daemon is started
#   test     libvirt's daemon, and the programs that tests start
#   bench    the programs that vmsnap is compared with
#   fresh    to create bare roots of Debian or Ubuntu
#   package  to build and check packages
set -euo pipefail

declare -A DEBIAN=(
    [build]="build-essential pkg-config libvirt-dev"
    [check]="shellcheck"
    [demo]="libvirt0 libvirt-daemon-driver-qemu libvirt-daemon qemu-system-x86 qemu-utils"
    [test]="libvirt-daemon-system libvirt-clients nbdkit libnbd-bin fuse3 e2fsprogs util-linux mount procps xz-utils tzdata swtpm swtpm-tools age python3 python3-venv python3-cryptography python3-zstandard libfaketime virtnbdbackup libguestfs-tools libguestfs-xfs kmod syslinux syslinux-common mtools"
    [bench]="virtnbdbackup libnbd-bin restic rclone"
    [fresh]="debootstrap debian-archive-keyring wget git util-linux"
    [package]="dpkg-dev binutils file lintian rpm qemu-utils"
)
declare -A FEDORA=(
    [build]="gcc make pkgconf-pkg-config libvirt-devel"
    [check]="ShellCheck"
    [demo]="libvirt-libs libvirt-daemon-driver-qemu libvirt-daemon-driver-storage-core qemu-kvm-core qemu-img"
    [test]="libvirt-daemon libvirt-daemon-log libvirt-client nbdkit libnbd fuse3 e2fsprogs util-linux procps-ng xz tzdata swtpm swtpm-tools age python3 python3-cryptography python3-zstandard libfaketime virtnbdbackup libguestfs libguestfs-xfs kmod syslinux syslinux-nonlinux mtools"
    [bench]="virtnbdbackup libnbd restic rclone"
    [fresh]="debootstrap debian-keyring wget git util-linux"
    [package]="dpkg-dev dpkg binutils file rpm-build qemu-img"
)

# The programs that tests and benchmarks start, by Debian package: those above, and some that every
# Debian system has (coreutils, dash, bash, dpkg, apt, libc-bin, tar). tests/tidy.rs compares this list
# with the sources.
declare -A PROGRAMS=(
    [coreutils]="chmod cp dd env mkfifo mknod mv sleep true" [dash]="sh" [diffutils]="cmp" [bash]="bash" [dpkg]="dpkg-deb" [apt]="apt-cache apt-get" [libc-bin]="ldd"
    [build-essential]="cc"
    [qemu-utils]="qemu-img qemu-io qemu-nbd"
    [libvirt-clients]="virsh"
    [nbdkit]="nbdkit"
    [fuse3]="fusermount3"
    [e2fsprogs]="debugfs e2fsck mke2fs mkfs.ext4"
    [util-linux-extra]="fincore"
    [util-linux]="flock lsblk mkswap nsenter prlimit runuser setpriv setsid unshare"
    [mount]="losetup mount swapoff swapon umount"
    [procps]="kill ps"
    [xz-utils]="xz"
    [swtpm]="swtpm" [swtpm-tools]="swtpm_setup" [tar]="tar" [age]="age" [python3]="/usr/bin/python3"
    [virtnbdbackup]="virtnbdbackup virtnbdrestore" [libnbd-bin]="nbdcopy nbdinfo" [libguestfs-tools]="guestfish" [kmod]="depmod" [syslinux]="syslinux" [mtools]="mcopy mformat" [restic]="restic" [rclone]="rclone"
)

# The tests download and unpack these without installing them. The package lists must know them.
guest_packages() {
    local ID='' ID_LIKE='' kernel=linux-image-cloud-amd64
    # shellcheck source=/dev/null
    [ ! -r /etc/os-release ] || . /etc/os-release
    case " $ID $ID_LIKE " in
    *" ubuntu "*) kernel=linux-image-virtual ;;
    esac
    echo "$kernel busybox-static qemu-guest-agent"
}

# Packages of one source, which must have the same version.
QEMU_PACKAGES=" qemu-system-x86 qemu-utils "

usage() {
    echo "usage: $0 build|check|demo|test|bench|fresh|package..." >&2
    exit 64
}

# Fails without cargo, and says how to install it: the distribution's Rust may be too old.
need_cargo() {
    local cargo=${CARGO:-cargo}
    command -v "$cargo" >/dev/null && return
    cat >&2 <<TEXT
'$cargo' is missing. Install Rust with rustup (https://rustup.rs):
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
or give its path: make CARGO=/path/to/cargo ...
TEXT
    exit 1
}

# The installed ones of these packages, one per line. dpkg-query fails if it does not know one.
installed() {
    { dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true; } | sed -n 's/^installed //p'
}

candidate() {
    apt-cache policy "$1" | awk '/Candidate:/ { print $2 }'
}

# Whether the package lists know all these packages.
lists_know() {
    local known
    known=$(apt-cache policy "$@" | awk '/Candidate:/ && $2 != "(none)"' | wc -l)
    [ "$known" -eq $# ]
}

tell_missing() {
    echo "Please install these packages (as root), then try again:" >&2
    echo "    Debian, Ubuntu: apt-get install --no-install-recommends $1" >&2
    echo "    Fedora, RHEL:   dnf install $2" >&2
    exit 1
}

# Installs Debian packages. Those of QEMU get the candidate version of the system emulator: a newer
# qemu-utils (from backports) would keep the emulator from being installed.
install() {
    local version package words=()
    version=$(candidate qemu-system-x86)
    for package in "$@"; do
        case $QEMU_PACKAGES in
        *" $package "*) words+=("$package=$version") ;;
        *) words+=("$package") ;;
        esac
    done
    # Packages from one source are installed together, even if only one is missing.
    case " $* " in
    *" qemu-system-x86 "*) [ -n "$(installed qemu-utils)" ] && words+=("qemu-utils=$version") ;;
    esac
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --allow-downgrades "${words[@]}"
}

# supermin, which builds the virtual machine of libguestfs, fails without this folder. Containers
# have no kernel that would bring it.
make_modules_folder() {
    case " $* " in
    *" test "*) [ -d /lib/modules ] || [ "$(id -u)" != 0 ] || mkdir /lib/modules ;;
    esac
}

# Fails if a program is not in PATH, for example in /usr/sbin after a plain `su`.
check_programs() {
    local package program
    for package in "$@"; do
        for program in ${PROGRAMS[$package]:-}; do
            command -v "$program" >/dev/null || {
                echo "'$program' of the package $package is not in PATH" >&2
                exit 1
            }
        done
    done
}

[ $# -gt 0 ] || usage
debian='' fedora='' guest=''
for level in "$@"; do
    [ -n "${DEBIAN[$level]+known}" ] || usage
    debian="$debian ${DEBIAN[$level]}"
    fedora="$fedora ${FEDORA[$level]}"
    [ "$level" = test ] && guest=$(guest_packages)
done
# Debian has fincore in a package of its own, which a bare Debian 13 lacks.
case " $* " in
*" test "*) command -v fincore >/dev/null || debian="$debian util-linux-extra" ;;
esac
debian=${debian# } fedora=${fedora# }

need_cargo
make_modules_folder "$@"

if ! command -v dpkg-query >/dev/null; then
    if command -v rpm >/dev/null; then
        # shellcheck disable=SC2086 # a list of words
        rpm -q --quiet $fedora || tell_missing "$debian" "$fedora"
        [ -z "$guest" ] || echo "note: the tests with a Linux guest need Debian's apt-get and dpkg-deb" >&2
        exit 0
    fi
    tell_missing "$debian" "$fedora"
fi

# shellcheck disable=SC2086 # a list of words
present=" $(installed $debian | tr '\n' ' ') "
missing=()
for package in $debian; do
    case $present in
    *" $package "*) ;;
    *) missing+=("$package") ;;
    esac
done
# shellcheck disable=SC2086 # a list of words
if [ ${#missing[@]} -eq 0 ] && { [ -z "$guest" ] || lists_know $guest; }; then
    # shellcheck disable=SC2086 # a list of words
    check_programs $debian
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    tell_missing "${missing[*]:-$guest}" "$fedora"
fi
# shellcheck disable=SC2086 # a list of words
lists_know "${missing[@]}" $guest || apt-get update -q
if [ ${#missing[@]} -gt 0 ]; then
    # With outdated package lists the mirror may lack the files that they name.
    install "${missing[@]}" || { apt-get update -q && install "${missing[@]}"; }
fi
# shellcheck disable=SC2086 # a list of words
check_programs $debian

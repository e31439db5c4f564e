#!/usr/bin/env bash
# Runs S3 servers for tests.
#
#   scripts/s3.sh start FOLDER [SERVER...]   starts servers: moto, garage [both]
#   scripts/s3.sh stop FOLDER                ends the servers of this folder and removes the folder
#
#   S3_OWNER  a process id: the servers also end soon after this process
#
# `start` creates FOLDER, which must not exist, and prints the path of a file for each server, with
# lines NAME=VALUE: ENDPOINT, REGION, KEY, SECRET, BUCKET, LOCKED_BUCKET (moto only) and CLOCK. A time
# such as +3h in the file CLOCK moves the server's clock forward. Servers use free ports and keep everything
# in FOLDER, so several runs do not disturb each other.
#
# The programs are installed once, in ~/.cache/vmsnap-test: moto with pip, garage with cargo, which
# takes half an hour on two cores.
set -euo pipefail

readonly GARAGE_VERSION=2.5.0
# The seconds until a server has to be ready.
readonly DEADLINE=60
# Tries of a server whose ports another program may have taken.
readonly TRIES=3
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vmsnap-test
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly cache here

usage() {
    echo "usage: $0 start FOLDER [moto|garage...] | stop FOLDER" >&2
    exit 64
}

fail() {
    echo "s3: $*" >&2
    exit 1
}

# The folder of moto's Python environment. Other versions are in another folder.
moto_environment() {
    local pins
    pins=$(sha256sum "$here/s3/moto.txt")
    echo "$cache/moto-${pins:0:16}"
}

# Installs moto if it is missing. The last file shows that the installation is complete.
install_moto() {
    local to
    to=$(moto_environment)
    [ ! -e "$to/complete" ] || return 0
    echo "s3: installing moto in $to, which takes some minutes ..." >&2
    rm -rf "$to"
    /usr/bin/python3 -m venv "$to" || fail "cannot create a Python environment: is python3-venv installed?"
    "$to/bin/python3" -m pip install --quiet --no-deps --disable-pip-version-check -r "$here/s3/moto.txt" >&2 ||
        fail "cannot install moto from the Python package index: see the messages above"
    touch "$to/complete"
}

install_garage() {
    ! "$cache/garage/bin/garage" --version 2>/dev/null | grep -qF "$GARAGE_VERSION" || return 0
    echo "s3: building garage $GARAGE_VERSION in $cache, which takes half an hour on two cores ..." >&2
    # Outside of the sources, whose settings for cargo are not meant for it. Without most of the
    # optimisations, the build takes less time.
    (cd "$cache" && CARGO_TARGET_DIR="$cache/build" CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=false "${CARGO:-cargo}" install garage \
        --version "$GARAGE_VERSION" --locked --root "$cache/garage" >&2) ||
        fail "cannot build garage $GARAGE_VERSION: see the messages above"
    rm -rf "$cache/build"
}

# Installs the programs of a server, one run at a time.
install() {
    mkdir -p "$cache"
    (
        flock 9
        "install_$1" 9>&-
    ) 9>"$cache/$1.lock"
}

# The field of /proc/PID/stat with the time at which a process began, so that a process id that was
# given again is not mistaken for the server. Nothing for a process that has ended.
began() {
    awk '$3 != "Z" { print $22 }' "/proc/$1/stat" 2>/dev/null || true
}

# launch DIR PROGRAM...: starts a server in the background.
launch() {
    local dir=$1
    shift
    setsid "$@" </dev/null >>"$dir/log" 2>&1 &
    echo "$! $(began $!)" >"$dir/pid"
}

clock_library() {
    local found
    for found in /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib*/faketime/libfaketimeMT.so.1; do
        if [ -e "$found" ]; then
            echo "$found"
            return
        fi
    done
    fail "libfaketimeMT.so.1 is missing: install the package libfaketime"
}

# Whether the server of a folder runs.
runs() {
    local pid='' start=''
    read -r pid start 2>/dev/null <"$1/pid" || return 1
    [ -n "$start" ] && [ "$(began "$pid")" = "$start" ]
}

# wait_for DIR PROGRAM...: repeats the program until it succeeds. Fails if the server ends or after
# the deadline.
wait_for() {
    local dir=$1 end=$((SECONDS + DEADLINE))
    shift
    until "$@" >/dev/null 2>&1; do
        runs "$dir" || return 1
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}

end_server() {
    local dir=$1 pid='' start='' tries=0
    runs "$dir" || return 0
    read -r pid start <"$dir/pid"
    # Each has a process group of its own.
    kill -TERM -- "-$pid" 2>/dev/null || true
    while runs "$dir"; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || kill -KILL -- "-$pid" 2>/dev/null || true
        [ "$tries" -lt 200 ] || fail "the process $pid of $dir does not end"
        sleep 0.05
    done
}

start_moto() {
    local dir=$1
    launch "$dir" "$(moto_environment)/bin/python3" "$here/s3/serve_moto.py" "$dir/facts" "$dir/clock"
    wait_for "$dir" test -e "$dir/facts"
}

free_ports() {
    /usr/bin/python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(found.getsockname()[1] for found in sockets))'
}

random_hex() {
    od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}

accepts() {
    : <"/dev/tcp/127.0.0.1/$1"
}

start_garage() {
    local dir=$1 rpc api library
    library=$(clock_library) || exit 1
    read -r rpc api < <(free_ports)
    cat >"$dir/config.toml" <<TOML
metadata_dir = "$dir/meta"
data_dir = "$dir/data"
db_engine = "lmdb"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:$rpc"
rpc_public_addr = "127.0.0.1:$rpc"
rpc_secret = "$(random_hex 32)"

[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:$api"
TOML
    # Garage refuses secrets that others can read.
    chmod 600 "$dir/config.toml"
    cat >"$dir/facts" <<FACTS
ENDPOINT=http://127.0.0.1:$api
REGION=garage
KEY=GK$(random_hex 12)
SECRET=$(random_hex 32)
BUCKET=backups
FACTS
    # A single node assigns itself a layout, and creates the key and the bucket before it listens.
    GARAGE_DEFAULT_ACCESS_KEY=$(fact "$dir" KEY) GARAGE_DEFAULT_SECRET_KEY=$(fact "$dir" SECRET) \
        GARAGE_DEFAULT_BUCKET=$(fact "$dir" BUCKET) \
        LD_PRELOAD=$library FAKETIME_TIMESTAMP_FILE=$dir/clock FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 \
        launch "$dir" "$cache/garage/bin/garage" -c "$dir/config.toml" server --single-node --default-bucket
    wait_for "$dir" accepts "$api"
}

fact() {
    sed -n "s/^$2=//p" "$1/facts"
}

# Starts a server, and prints the path of the file for its clients.
start_server() {
    local server=$1 dir=$2 try
    for ((try = 1; try <= TRIES; try++)); do
        rm -rf "$dir"
        mkdir -p "$dir"
        echo "+0h" >"$dir/clock"
        if "start_$server" "$dir"; then
            echo "CLOCK=$dir/clock" >>"$dir/facts"
            echo "$dir/facts"
            return
        fi
        end_server "$dir"
    done
    cat "$dir/log" >&2
    fail "$server does not start: see its messages above"
}

# Waits in the background for the end of the owner.
watch_owner() {
    local folder=$1
    # shellcheck disable=SC2016 # the inner shell's arguments
    setsid bash -c 'tail --pid="$1" -f /dev/null; exec "$2" stop "$3"' watch \
        "$S3_OWNER" "$here/s3.sh" "$folder" </dev/null >/dev/null 2>&1 &
    echo "$! $(began $!)" >"$folder/watch/pid"
}

start() {
    local folder=$1 server
    shift
    [ $# -gt 0 ] || set -- moto garage
    for server in "$@"; do
        case $server in
        moto | garage) ;;
        *) usage ;;
        esac
    done
    for server in "$@"; do
        install "$server"
    done
    mkdir "$folder" || fail "cannot create $folder"
    folder=$(cd "$folder" && pwd)
    mkdir "$folder/watch"
    started=$folder
    [ -z "${S3_OWNER:-}" ] || watch_owner "$folder"
    for server in "$@"; do
        start_server "$server" "$folder/$server"
    done
    started=''
}

stop() {
    local folder=$1 server
    [ -d "$folder" ] || return 0
    for server in moto garage watch; do
        # The watch calls this itself, so its end is the last step.
        [ "$server" != watch ] || rm -rf "${folder:?}/moto" "${folder:?}/garage"
        [ "$server" != watch ] || [ "$(cut -d' ' -f1 "$folder/watch/pid" 2>/dev/null)" != $$ ] || continue
        end_server "$folder/$server"
    done
    rm -rf "${folder:?}"
}

# A start that fails leaves nothing.
started=''
trap '[ -z "$started" ] || stop "$started"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

[ $# -ge 2 ] || usage
case $1 in
start) start "${@:2}" ;;
stop) [ $# -eq 2 ] || usage && stop "$2" ;;
*) usage ;;
esac

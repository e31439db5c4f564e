#!/bin/sh
# Stands for guestfish in unit tests. It reads commands from its standard input, one a line.
while IFS= read -r line; do
    path=${line#* \"}
    path=${path%\"}
    case $line in
    "echo "*) printf '%s\n' "${line#echo }" ;;
    run*)
        if [ "${LIBGUESTFS_BACKEND_SETTINGS-}" != force_tcg ]; then
            echo "*stdin*:1: libguestfs: error: no machine" >&2
            exit 1
        fi
        ;;
    say*) printf 'one\nvmsnap-0000000000000000-2\ntwo\n' ;;
    fail*)
        echo "*stdin*:3: libguestfs: error: it failed" >&2
        exit 1
        ;;
    -fail*) echo "*stdin*:3: libguestfs: error: it may fail" >&2 ;;
    data*) printf 'content' >"$path" ;;
    cut*)
        printf 'cont' >"$path"
        echo "*stdin*:3: libguestfs: error: read: Input/output error" >&2
        exit 1
        ;;
    hang*) sleep 1000 ;;
    esac
done

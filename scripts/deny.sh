#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licences, sources, duplicates, and known advisories
# if the advisory database can be fetched. Installs cargo-deny into cargo's own folder if missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=0.20.2
ADVISORY_DB=https://github.com/rustsec/advisory-db
cargo=${CARGO:-cargo}

if ! "$cargo" deny --version >/dev/null 2>&1; then
    echo "cargo-deny is missing. 'cargo install' builds it once, which takes some minutes ..." >&2
    # Its own release profile optimizes for size and takes several times longer.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        "$cargo" install --quiet --locked "cargo-deny@$VERSION" || {
        echo "cannot install cargo-deny $VERSION: see the messages above." >&2
        echo "Hint: install it by hand with 'cargo install --locked cargo-deny@$VERSION'." >&2
        exit 1
    }
fi

"$cargo" deny --locked --all-features check bans licenses sources

# An unreachable database is no fault of the sources, so it is only reported. The fetch must not ask
# for a password.
if GIT_TERMINAL_PROMPT=0 timeout 60 "$cargo" deny fetch db >/dev/null 2>&1; then
    "$cargo" deny --locked --all-features check --disable-fetch advisories
else
    echo "note: advisories were not checked, because $ADVISORY_DB cannot be reached" >&2
fi

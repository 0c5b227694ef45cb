#!/bin/sh
# Make the environment: tools/setup.sh VENV [PYTHON]. Installs what constraints.txt pins, torch first,
# so that nothing else draws in a second one.
set -eu
venv=$1 asked=${2:-}

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

if [ -f "$venv/.ready" ] && [ "$(head -n 1 "$venv/.ready")" != "$(pwd -P)" ]; then
    rm -rf "$venv" # made elsewhere: its commands would start the other one
fi
if ! fits "$venv/bin/python" || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    python=
    if [ -n "$asked" ]; then set -- "$asked"; else set -- python3 python3.13 python3.12 python3.11 python3.10; fi
    for p in "$@"; do
        if fits "$p"; then python=$p; break; fi
    done
    if [ -z "$python" ]; then
        found=$("$1" --version 2>&1) || found='no such command'
        fail "Python 3.10 to 3.13 is needed; $1 is: $found. Name another with: make setup PYTHON=/path/to/python3.12"
    fi
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module. On Debian and Ubuntu: apt-get install python3-venv. Or name another with: make setup PYTHON=..."
    printf 'setup: making %s with %s\n' "$venv" "$("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

rm -f "$venv/.ready" # make writes it anew when all went well
torch=$(grep '^torch==' constraints.txt)
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"; }
printf 'setup: %s (the large one: minutes on a slow line)\n' "$torch"
pip "$torch" setuptools
printf 'setup: everything else, as pinned in constraints.txt\n'
pip --no-build-isolation --editable '.[dev]'
printf 'setup: %s is ready\n' "$venv"

#!/bin/sh
# See that the browser tests have a browser. Where there is none, root on a Debian-like system installs it;
# elsewhere this says so and pytest skips them (with CI=true it fails them, see conftest.py).
set -u
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo 'test: installing chromium for the browser tests'
    log=$(mktemp)
    if { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >"$log" 2>&1; then
        rm -f "$log"; exit 0
    fi
    tail -n 5 "$log" >&2; rm -f "$log"
    echo 'test: chromium could not be installed' >&2
fi
echo 'test: no chromium here, so the browser tests will be skipped (with CI=true they fail)'

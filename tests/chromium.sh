#!/usr/bin/env bash
# Print where Chromium is; install Debian's where there is none. For the tests that look at pages as a browser shows them.
set -euo pipefail
find_it() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

if ! find_it; then
    [[ $EUID == 0 ]] && command -v apt-get >/dev/null || {
        echo "No Chromium here, and only root on Debian or Ubuntu can install it: apt-get install chromium" >&2
        exit 1
    }
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } >&2
    find_it
fi

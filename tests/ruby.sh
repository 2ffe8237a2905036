#!/usr/bin/env bash
# Print where Ruby is; install Debian's where there is none. For the tests that render the Open OnDemand app.
set -euo pipefail

if ! command -v ruby; then
    [[ $EUID == 0 ]] && command -v apt-get >/dev/null || {
        echo "No Ruby here, and only root on Debian or Ubuntu can install it: apt-get install ruby" >&2
        exit 1
    }
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ruby; } >&2
    command -v ruby
fi

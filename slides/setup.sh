#!/usr/bin/env bash
# Put Marp's command line, pinned in package-lock.json, into slides/node_modules; get Node.js from Debian where there is none.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v npm >/dev/null; then
    if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "Slides need Node.js 18 or later with npm, and only root on Debian or Ubuntu can install them here: apt-get install nodejs npm" >&2
        exit 1
    fi
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nodejs npm; } >&2
fi
(($(node -p 'process.versions.node.split(".")[0]') >= 18)) || {
    echo "Slides need Node.js 18 or later; this is $(node --version)." >&2
    exit 1
}
[[ node_modules/.package-lock.json -nt package-lock.json ]] || npm ci --no-progress >&2

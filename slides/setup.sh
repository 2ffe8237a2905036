#!/usr/bin/env bash
# Put Marp's command line, pinned in package-lock.json, into slides/node_modules; get Node.js from Debian where there is none.
set -euo pipefail
cd "$(dirname "$0")"

command -v npm >/dev/null || ../requirements/debian.sh nodejs npm # Node.js 18 or later
(($(node -p 'process.versions.node.split(".")[0]') >= 18)) || {
    echo "Slides need Node.js 18 or later; this is $(node --version)." >&2
    exit 1
}
[[ node_modules/.package-lock.json -nt package-lock.json ]] || npm ci --no-progress >&2

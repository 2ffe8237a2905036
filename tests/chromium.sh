#!/usr/bin/env bash
# Print where Chromium is; install Debian's where there is none. For the tests that look at pages as a browser shows them.
set -euo pipefail
find_it() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

find_it || { "$(dirname "${BASH_SOURCE[0]}")/../requirements/debian.sh" chromium && find_it; }

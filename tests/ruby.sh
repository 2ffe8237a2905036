#!/usr/bin/env bash
# Print where Ruby is; install Debian's where there is none. For the tests that render the Open OnDemand app.
set -euo pipefail
command -v ruby || { "$(dirname "${BASH_SOURCE[0]}")/../requirements/debian.sh" ruby && command -v ruby; }

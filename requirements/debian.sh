#!/usr/bin/env bash
# debian.sh PACKAGE...: install packages of Debian or Ubuntu, as root; one at a time, however many tests ask at once.
set -euo pipefail
[[ $EUID == 0 ]] && command -v apt-get >/dev/null || {
    echo "Only root on Debian or Ubuntu can install what is missing here: apt-get install $*" >&2
    exit 1
}
exec 9>/var/lock/llm-serving-workshop
flock 9
{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >&2 9>&-

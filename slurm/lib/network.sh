# Addresses and ports; sourced on the first node by job.sh and on every node by rank.sh.
# shellcheck shell=bash disable=SC2034

named_address() { # the IPv4 address behind this node's name; a name that leads to loopback does not count
    local address
    address=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127\./ {print $1; exit}')
    echo "${address:-$(hostname -I | awk '{print $1}')}"
}

rank_address() { # where the ranks find each other: the site's interface if it names one
    [[ -n ${SITE_INTERFACE:-} ]] || { named_address && return; }
    ip -4 -o address show dev "$SITE_INTERFACE" 2>/dev/null | awk '{sub("/.*", "", $4); print $4; exit}'
}

interface_of() { # the name of the interface with this address
    ip -4 -o address | awk -v wanted="$1" '{split($4, part, "/")} part[1] == wanted {print $2; exit}'
}

port_is_taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null || (exec 3<>"/dev/tcp/$(named_address)/$1") 2>/dev/null
}

# Ports come from the job id, ten a job: two jobs on a node do not share one. From 20000, below which Ray has its workers,
# to 32000, above which the system hands out its own. +0 is the API, +1 where ranks meet, +2 Ray.
choose_ports() {
    local try
    if [[ -n ${PORT:-} ]]; then
        ! port_is_taken "$PORT" || fail "Port $PORT is taken on $(hostname). Unset PORT to get one from the job id, or name another."
    else
        for try in {0..19}; do
            PORT=$((20000 + ((SLURM_JOB_ID + try * 97) * 10) % 12000))
            port_is_taken "$PORT" || port_is_taken $((PORT + 1)) || break
            say "port $PORT or the next is taken on $(hostname): trying others"
        done
    fi
    MASTER_PORT=$((PORT + 1)) RAY_PORT=$((PORT + 2))
}

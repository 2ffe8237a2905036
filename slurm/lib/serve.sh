# serve: stand up a vLLM server on the nodes of this job, tell where it is, watch it, and end it cleanly; sourced by job.sh.
# shellcheck shell=bash
: "${DRAIN_SECONDS:=100}" # how long requests in flight may take when the time limit nears; --signal gives 120 s in all

# shellcheck disable=SC2120 # flags are optional
serve() { # serve [vLLM flags]: returns never; the job ends when the server does
    start_server "$@"
    say "ready: $SERVED_NAME answers at http://$(named_address):$PORT/v1 (key: $CONNECTION)"
    while check_ranks; do sleep 0.5; done
}

start_server() {
    : "${DP:=1}" "${SERVED_NAME:=${MODEL##*/}}"
    finish_on_every_exit
    trap drain USR1
    command -v curl >/dev/null || fail "No curl on $(hostname); load a module that brings it (SITE_MODULES)."
    [[ -z ${SERVE_CLASS:-} || -d $SERVE_CLASS/keys ]] || fail "$SERVE_CLASS is no class's folder. Make it one: python -m helpers.classroom open $SERVE_CLASS"
    check_layout
    find_model
    choose_ports
    make_key
    say "starting $SERVED_NAME on ${NODES[*]}: TP$TP x PP$PP x DP$DP; follow it with: tail -f $JOB_DIR/rank-0.log"
    write_connection starting
    start_ranks "$@"
    wait_until_ready
    PHASE=serving
    write_connection ready
    [[ -z ${SERVE_CLASS:-} ]] || offer_to_class
}

check_layout() {
    local gpus=$((${SLURM_GPUS_ON_NODE:-0} * ${#NODES[@]})) ranks=$((TP * PP * DP))
    ((ranks % ${#NODES[@]} == 0)) || fail "TP$TP x PP$PP x DP$DP = $ranks ranks cannot be shared evenly by ${#NODES[@]} nodes. Change TP, PP or --nodes."
    if [[ ${SMALL:-0} == 0 ]]; then
        ((gpus == ranks)) || fail "TP$TP x PP$PP x DP$DP takes $ranks GPUs and the job has $gpus. Change TP and PP, or --nodes and --gpus-per-node."
    fi
}

find_model() { # a folder of the site's if it holds the model, else what MODEL names
    [[ -z ${SITE_MODELS:-} || ! -f $SITE_MODELS/${MODEL##*/}/config.json ]] || MODEL=$SITE_MODELS/${MODEL##*/}
    if [[ $MODEL == [./]* ]]; then
        [[ -f $MODEL/config.json ]] || fail "No model in $MODEL: it holds no config.json. Name the folder that does, in MODEL."
        export HF_HUB_OFFLINE=1
    fi
}

make_key() { # it travels in files and environments that only the owner can read, never on a command line
    API_KEY=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
    AUTH=$JOB_DIR/authorization
    printf 'Authorization: Bearer %s\n' "$API_KEY" >"$AUTH"
}

start_ranks() { # start_ranks [vLLM flags]
    local rank head
    head=$(rank_address)
    local command=(vllm serve "$MODEL" --served-model-name "$SERVED_NAME" --host 0.0.0.0 --port "$PORT"
        --tensor-parallel-size "$TP" --pipeline-parallel-size "$PP" --data-parallel-size "$DP"
        --max-model-len "$MAX_MODEL_LEN" --shutdown-timeout "$DRAIN_SECONDS" --middleware helpers.guard.RequireKey)
    [[ ${SMALL:-0} != 0 ]] || command+=("$@") # the small model has other parsers, and no experts
    command+=("${SMALL_FLAGS[@]}" "${EXTRA_FLAGS[@]}")
    if [[ ${LAUNCHER:-native} == ray ]]; then
        command=(ray symmetric-run --address "$head:$RAY_PORT" --min-nodes "${#NODES[@]}" --
            "${command[@]}" --distributed-executor-backend ray)
    elif ((${#NODES[@]} > 1)); then
        command+=(--nnodes "${#NODES[@]}" --master-addr "$head" --master-port "$MASTER_PORT" --node-rank)
    fi
    echo "${command[*]}" >"$JOB_DIR/command"
    export VLLM_API_KEY=$API_KEY
    for rank in "${!NODES[@]}"; do
        if [[ ${command[-1]} != --node-rank ]]; then
            start_rank "$rank" "${command[@]}"
        elif ((rank == 0)); then
            start_rank 0 "${command[@]}" 0
        else
            start_rank "$rank" "${command[@]}" "$rank" --headless
        fi
    done
    unset VLLM_API_KEY
}

answers() { # one token for a short prompt: the only sign of readiness that means what it says
    curl --silent --fail --noproxy '*' --max-time 60 --output /dev/null --header @"$AUTH" --header 'Content-Type: application/json' \
        --data "{\"model\": \"$SERVED_NAME\", \"prompt\": \"Hello\", \"max_tokens\": 1}" "http://127.0.0.1:$PORT/v1/completions" &
    wait $! # unlike a curl in the foreground, this lets a signal through at once
}

wait_until_ready() {
    until answers; do
        check_ranks
        sleep 0.2
    done
}

write_connection() { # write_connection STATE: the file by which notebooks find the server
    mkdir -p "$WORKSHOP_HOME/servers"
    CONNECTION=$WORKSHOP_HOME/servers/$(hostname)-$SLURM_JOB_ID-$PORT.json
    put_connection "$CONNECTION" "$API_KEY" "$JOB_DIR/rank-0.log" "$1" ||
        fail "$WORKSHOP_HOME/servers cannot be written. Free some space, or set WORKSHOP_HOME."
}

offer_to_class() { # a class's participants find the server too; each has a key of their own, which the guard knows
    OFFERED=$SERVE_CLASS/servers/${CONNECTION##*/}
    if ! { put_connection "$OFFERED" "" "" ready && chmod 644 "$OFFERED"; }; then
        say "the class does not find this server, for $SERVE_CLASS/servers cannot be written: free some space there, or have it made yours"
    fi
}

put_connection() { # put_connection FILE KEY LOG STATE: whole or not at all
    local draft
    draft=$(mktemp "${1%/*}/.draft-XXXXXX") || return
    printf '{"base_url": "%s", "model": "%s", "api_key": "%s", "log": "%s", "node": "%s", "job_id": "%s", "state": "%s"}\n' \
        "http://$(named_address):$PORT/v1" "$SERVED_NAME" "$2" "$3" "$(hostname)" "$SLURM_JOB_ID" "$4" >"$draft" && mv "$draft" "$1" && return
    rm -f "$draft"
    return 1
}

drain() { # the time limit nears: no new clients, finish what is in flight, end
    trap '' USR1
    # shellcheck disable=SC2034 # for finish
    OUTCOME="finished: stopped before the time limit, after the requests in flight"
    rm -f "$CONNECTION" "$OFFERED"
    [[ $PHASE == serving ]] || exit 0
    say "draining: requests in flight may take $DRAIN_SECONDS s more"
    kill -TERM "$(<"$JOB_DIR/rank-0.pid")" # vLLM alone, on this node: it refuses new requests and finishes the others
    local deadline=$((SECONDS + DRAIN_SECONDS + 5))
    while is_alive "${RANK_PIDS[0]}" && ((SECONDS < deadline)); do sleep 0.2; done
    exit 0
}

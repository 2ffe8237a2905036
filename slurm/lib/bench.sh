# bench: measure our server, or several layouts on one node after another; sourced by job.sh.
# shellcheck shell=bash
bench_serve() { # bench_serve [flags of vllm bench serve]: measure our server from its first node; ends with it if it dies
    local bench
    OPENAI_API_KEY=$API_KEY srun --overlap --nodes=1 --ntasks=1 --nodelist="${NODES[0]}" --mem=0 \
        "$WORKSHOP_ROOT/slurm/lib/rank.sh" bench vllm bench serve --backend openai --base-url "http://127.0.0.1:$PORT" \
        --model "$SERVED_NAME" --tokenizer "$MODEL" "$@" &
    bench=$!
    while is_alive "$bench"; do check_ranks && sleep 0.5; done
    wait "$bench"
}

run_matrix() { # run_matrix MATRIX RESULTS: every server of a matrix on this node; the same job goes on where another stopped
    local status
    finish_on_every_exit
    trap stop_matrix USR1
    ((${#NODES[@]} == 1)) || fail "A matrix is measured on one node and the job has ${#NODES[@]}. Leave --nodes at 1."
    [[ -s $1 ]] || fail "$1 is missing or empty on $(hostname). Name a TOML file on shared storage in MATRIX."
    PHASE=measuring
    say "measuring $1; follow it with: tail -f $JOB_DIR/rank-0.log"
    start_rank 0 python3 -m helpers.bench run "$1" --out "$2"
    end_of_rank 0
    status=$?
    [[ ${OUT_OF_TIME:-0} == 0 ]] || fail "the time limit came; what is measured is in $2. Submit the same again: it goes on from there."
    case $status in
    0) ;;
    1) fail "some servers were not measured: $(sed -n 's/^failed: //p' "$JOB_DIR/rank-0.log" | tail -n 1) What is measured is in $2." ;;
    2) fail "$(tail -n 1 "$JOB_DIR/rank-0.log")" ;;
    *) fail "rank 0 on ${NODES[0]} ended with status $status while $PHASE: $(likely_cause)" ;;
    esac
}

stop_matrix() { # the time limit nears: the server at work ends, what is measured is kept
    trap '' USR1
    OUT_OF_TIME=1
    say "the time limit nears: stopping"
    kill -TERM "$(<"$JOB_DIR/rank-0.pid")"
}

# run_batch: answer a file of requests on one node without a server; sourced by job.sh.
# shellcheck shell=bash

run_batch() { # run_batch INPUT OUTPUT: OUTPUT appears when it is whole
    local status part=$2.part
    : "${DP:=1}" "${SERVED_NAME:=${MODEL##*/}}"
    finish_on_every_exit
    trap 'fail "the time limit came before the end. Give the job more --time, or split $INPUT into smaller files."' USR1
    ((${#NODES[@]} == 1)) || fail "A batch runs on one node and the job has ${#NODES[@]}. Leave --nodes at 1."
    [[ -s $1 ]] || fail "$1 is missing or empty on $(hostname). Name a file of requests on shared storage in INPUT."
    check_layout
    find_model
    PHASE=answering
    say "answering $(wc -l <"$1") requests of $1 with $SERVED_NAME: TP$TP x PP$PP"
    start_rank 0 vllm run-batch --input-file "$1" --output-file "$part" --model "$MODEL" --served-model-name "$SERVED_NAME" \
        --tensor-parallel-size "$TP" --pipeline-parallel-size "$PP" --max-model-len "$MAX_MODEL_LEN" \
        "${SMALL_FLAGS[@]}" "${EXTRA_FLAGS[@]}"
    end_of_rank 0
    status=$?
    ((status == 0)) || fail "rank 0 on ${NODES[0]} ended with status $status while $PHASE: $(likely_cause)"
    mv "$part" "$2"
    say "answers: $2"
}

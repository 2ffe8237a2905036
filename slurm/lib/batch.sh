# run_batch: answer a file of requests on one node without a server, from where an earlier job stopped; sourced by job.sh.
# shellcheck shell=bash
: "${REQUEUE:=1}" # at the time limit the job puts itself into the queue again; 0: it does not

run_batch() { # run_batch INPUT OUTPUT: in an array of jobs, this one's part of it
    local status before shard=() part=$2
    : "${DP:=1}" "${SERVED_NAME:=${MODEL##*/}}" "${SHARDS:=${SLURM_ARRAY_TASK_COUNT:-1}}"
    finish_on_every_exit
    trap stop_in_time USR1
    ((${#NODES[@]} == 1)) || fail "A batch runs on one node and the job has ${#NODES[@]}. Leave --nodes at 1."
    [[ -s $1 ]] || fail "$1 is missing or empty on $(hostname). Name a file of requests on shared storage in INPUT."
    [[ $2 == *.jsonl ]] || fail "OUTPUT is $2; it must end in .jsonl."
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        ((SLURM_ARRAY_TASK_ID < SHARDS)) || fail "Task $SLURM_ARRAY_TASK_ID is none of $SHARDS. Number the tasks from 0, or set SHARDS to how many there are."
        shard=(--shard "$SLURM_ARRAY_TASK_ID/$SHARDS")
        ((SHARDS == 1)) || part=${2%.jsonl}.$SLURM_ARRAY_TASK_ID-of-$SHARDS.jsonl
    fi
    check_layout
    find_model
    before=$(answered "$part")
    PHASE=answering
    say "answering $1 with $SERVED_NAME: TP$TP x PP$PP; $before answers are there already; answers: $part"
    start_rank 0 python3 -m helpers.batch run "$1" "$2" "${shard[@]}" --model "$MODEL" --served-model-name "$SERVED_NAME" \
        --tensor-parallel-size "$TP" --pipeline-parallel-size "$PP" --max-model-len "$MAX_MODEL_LEN" \
        "${SMALL_FLAGS[@]}" "${EXTRA_FLAGS[@]}"
    end_of_rank 0
    status=$?
    say "$(answered "$part") answers in $part"
    case $status in
    0 | 1) ((${#shard[@]} == 0)) || merge_parts "$2" ;;
    2) fail "$(its_words refused || likely_cause)" ;;
    3) come_again "$part" "$before" ;;
    *) fail "rank 0 on ${NODES[0]} ended with status $status while $PHASE: $(likely_cause)" ;;
    esac
    ((status == 0)) || fail "some lines have errors, which stand in ${part%.jsonl}.errors.jsonl. Mend what they name; the same job asks them again."
}

its_words() { # its_words refused|stopped: the sentence with which the run ended
    sed -n "s/^$1: //p" "$JOB_DIR/rank-0.log" | grep -m 1 .
}

answered() { # how many lines a file has
    [[ -f $1 ]] && wc -l <"$1" || echo 0
}

stop_in_time() { # the time limit nears: the run writes what it has and ends with status 3
    trap '' USR1
    OUT_OF_TIME=1
    say "the time limit nears: stopping"
    kill -TERM "$(<"$JOB_DIR/rank-0.pid")"
}

come_again() { # come_again PART BEFORE: the run stopped before its end
    if [[ ${OUT_OF_TIME:-0} == 1 && $REQUEUE != 0 ]] && (($(answered "$1") > $2)); then # else it would come again for ever
        trap '' TERM
        # shellcheck disable=SC2034 # for finish
        OUTCOME="requeued: the time limit came, and the same job goes on from here"
        scontrol requeue "$SLURM_JOB_ID" && exit 0
    fi
    fail "$(its_words stopped) Submit the same again."
}

merge_parts() { # merge_parts OUTPUT: the last job of an array that is done puts the parts together
    srun --nodes=1 --ntasks=1 --nodelist="${NODES[0]}" --mem=0 "$WORKSHOP_ROOT/slurm/lib/rank.sh" merge \
        python3 -m helpers.batch merge "$1" --when-complete
    (($? < 2)) || fail "The parts of $1 could not be put together; the end of this log says why. Mend it, and merge: python -m helpers.batch merge $1"
}

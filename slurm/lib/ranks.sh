# Start, watch and end one command per node; sourced by job.sh.
# shellcheck shell=bash
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
PHASE=starting CONNECTION="" OFFERED="" AUTH=""
RANK_PIDS=() # the srun of each rank; a rank is a node here: vLLM starts one process per GPU by itself

start_rank() { # start_rank RANK COMMAND...: on the RANK-th node of the job, logged to rank-RANK.log
    local rank=$1
    : >"$JOB_DIR/rank-$rank.log"
    srun --nodes=1 --ntasks=1 --nodelist="${NODES[rank]}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --mem=0 \
        --export=ALL --open-mode=append --output="$JOB_DIR/rank-$rank.log" \
        "$WORKSHOP_ROOT/slurm/lib/rank.sh" "$@" &
    RANK_PIDS[rank]=$!
}

is_alive() { kill -0 "$1" 2>/dev/null; }

check_ranks() { # ends the job when a rank has ended
    local rank status what
    for rank in "${!RANK_PIDS[@]}"; do
        is_alive "${RANK_PIDS[rank]}" && continue
        wait "${RANK_PIDS[rank]}"
        status=$?
        unset "RANK_PIDS[rank]"
        what="rank $rank on ${NODES[rank]} ended with status $status while $PHASE"
        say "$what; its log: $JOB_DIR/rank-$rank.log"
        end_ranks # what the others say on their way out may be part of the story
        fail "$what: $(likely_cause)"
    done
}

end_of_rank() { # end_of_rank RANK: wait for a rank that ends by itself; its status. Signals get through meanwhile
    local status
    while is_alive "${RANK_PIDS[$1]}"; do sleep 0.5; done
    wait "${RANK_PIDS[$1]}"
    status=$?
    unset "RANK_PIDS[$1]"
    return "$status"
}

likely_cause() { # the doctor's sentence; without Python or a known cause, where to look
    local venv=${SITE_VENV:-$WORKSHOP_ROOT/.venv} python
    python=$([[ -x $venv/bin/python ]] && echo "$venv/bin/python" || echo python3)
    PYTHONPATH=$WORKSHOP_ROOT "$python" -m helpers.doctor --brief "$JOB_DIR" 2>/dev/null && return
    tail -n 5 "$JOB_DIR"/rank-*.log >&2
    echo "the cause is unknown; read the end of the logs in $JOB_DIR."
}

end_ranks() { # ask every rank to end, kill what has not ended by then; Slurm itself leaves us 30 s (KillWait)
    local pid deadline=$((SECONDS + 16))
    ! any_rank_alive || scancel --quiet --signal=TERM "$SLURM_JOB_ID" # to the ranks, not to this script
    while ((SECONDS < deadline)) && any_rank_alive; do sleep 0.1; done
    for pid in "${RANK_PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null; done # srun then kills its tasks
}

finish_on_every_exit() { # what a job that starts ranks says first
    trap finish EXIT
    trap 'OUTCOME="cancelled: Slurm ended the job, by scancel or at its time limit"; exit 143' TERM INT HUP
}

finish() { # ranks, connection file and key go; the outcome stays
    trap '' USR1 TERM INT HUP
    rm -f "$CONNECTION" "$OFFERED" "$AUTH"
    end_ranks
    wait
    if [[ ! -f $JOB_DIR/outcome ]]; then
        echo "${OUTCOME:-finished}" >"$JOB_DIR/outcome"
        say "${OUTCOME:-finished}"
    fi
}

any_rank_alive() {
    local pid
    for pid in "${RANK_PIDS[@]}"; do is_alive "$pid" && return 0; done
    return 1
}

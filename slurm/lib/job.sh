# What every job of ours does first; sourced by the sbatch files. Needs bash 4.4 or newer, no Python.
#
#   WORKSHOP_ROOT   the workshop's folder; the sbatch file has found it
#   WORKSHOP_HOME   shared storage for logs and connection files (default ~/.llm-serving-workshop)
#   WORKSHOP_SITE   which slurm/sites/NAME.env describes this cluster (default: here.env if you made one, else generic)
#   SMALL=1         serve the workshop's small Llama with few ranks instead: any deployment, on any nodes, even on CPUs
# shellcheck shell=bash
set -u -o pipefail
umask 077
[[ ! -f /proc/self/fd/1 ]] || chmod 600 /proc/self/fd/1 # Slurm made our log with the umask of whoever submitted

# What the terminal that submitted us knew of a job of its own must not steer our srun.
unset SLURM_EXPORT_ENV SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE SLURM_CPU_BIND SLURM_TRES_PER_TASK \
    SLURM_GPUS SLURM_GPUS_PER_TASK SLURM_GPUS_PER_SOCKET SLURM_CPUS_PER_GPU SLURM_NTASKS_PER_GPU SLURM_DISTRIBUTION SLURM_HINT

export WORKSHOP_ROOT WORKSHOP_HOME="${WORKSHOP_HOME:-$HOME/.llm-serving-workshop}"
export JOB_DIR=$WORKSHOP_HOME/jobs/${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-${SLURM_JOB_ID:?run this with sbatch}}
mkdir -p "$JOB_DIR" || { echo "failed: $JOB_DIR cannot be made. Set WORKSHOP_HOME to a folder on shared storage that you can write." >&2; exit 1; }

say() { # to Slurm's log and to ours, which helpers.doctor reads
    printf '%(%H:%M:%S)T %s\n' -1 "$*" | tee -a "$JOB_DIR/launcher.log"
}

fail() { # one sentence with the mend; the job ends
    say "failed: $*"
    echo "failed: $*" >"$JOB_DIR/outcome"
    exit 1
}

read_site() {
    local sites=$WORKSHOP_ROOT/slurm/sites name=${WORKSHOP_SITE:-}
    [[ -n $name ]] || { [[ -f $sites/here.env ]] && name=here || name=generic; }
    [[ -f $sites/$name.env ]] || fail "No site profile $sites/$name.env: set WORKSHOP_SITE to one of $(cd "$sites" && echo *.env)."
    set -a
    # shellcheck source=slurm/sites/generic.env
    source "$sites/$name.env"
    set +a
}

choose_small_model() { # every deployment can be rehearsed: same nodes, same script, a model of 14 MB
    : "${MODEL:=$WORKSHOP_ROOT/helpers/tiny/model}" "${SERVED_NAME:=tiny-llama}" "${MAX_MODEL_LEN:=2048}" "${DP:=1}"
    : "${TP:=$((SLURM_NNODES > 1 || ${SLURM_GPUS_ON_NODE:-1} < 2 ? 1 : 2))}" "${PP:=$SLURM_NNODES}"
    [[ ${SITE_DEVICE:-gpu} != cpu ]] || prepare_cpu $((TP * PP * DP / SLURM_NNODES))
}

prepare_cpu() { # prepare_cpu RANKS_A_NODE: what vLLM needs on a CPU
    local rank binding=""
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} # GiB
    if (($1 > 1)); then                                       # ranks on one node: a core each, named by hand
        for ((rank = 0; rank < $1; rank++)); do binding+="|$((rank % $(nproc)))"; done
        export VLLM_CPU_OMP_THREADS_BIND=${binding#|}
        ((SLURM_NNODES == 1)) || SMALL_FLAGS+=(--worker-extension-cls helpers.cpu_ranks.LocalRanks) # its docstring says why
    elif ((SLURM_NNODES == 1)); then # one rank: helpers/keeper.py says why
        export OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0
    fi
    # Compiling takes half a minute and gains little on this model; with pipeline stages the CPU backend needs it.
    ((PP > 1)) || SMALL_FLAGS+=(--enforce-eager)
}

rm -f "$JOB_DIR"/{outcome,rank-*} # of an earlier try, when the job was requeued
SMALL_FLAGS=() EXTRA_FLAGS=()
read -ra EXTRA_FLAGS <<<"${FLAGS:-}" # split at blanks: write JSON without any
read_site
[[ ${SMALL:-0} == 0 ]] || choose_small_model
# shellcheck source=slurm/lib/network.sh
source "$WORKSHOP_ROOT/slurm/lib/network.sh"
# shellcheck source=slurm/lib/ranks.sh
source "$WORKSHOP_ROOT/slurm/lib/ranks.sh"
# shellcheck source=slurm/lib/serve.sh
source "$WORKSHOP_ROOT/slurm/lib/serve.sh"
# shellcheck source=slurm/lib/bench.sh
source "$WORKSHOP_ROOT/slurm/lib/bench.sh"
# shellcheck source=slurm/lib/batch.sh
source "$WORKSHOP_ROOT/slurm/lib/batch.sh"

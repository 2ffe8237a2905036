#!/bin/bash
# Runs one command on one node in the site's runtime, and leaves nothing behind: no process, no scratch file.
#   rank.sh RANK COMMAND...      SIGTERM ends it now. A server that shall finish what it has in flight first gets the
#   SIGTERM itself, by the pid in rank-RANK.pid: what Slurm sends reaches every process of the rank.
set -u -m # -m: the command gets a process group of its own, which ends as a whole
umask 077
# shellcheck source=slurm/lib/network.sh
source "$WORKSHOP_ROOT/slurm/lib/network.sh"
rank=$1
shift

# The card on which ranks meet, named on every node: the usual reason why several nodes never find each other.
VLLM_HOST_IP=$(rank_address)
if [[ -z $VLLM_HOST_IP ]]; then
    echo "failed: $(hostname) has no interface ${SITE_INTERFACE:-} with an IPv4 address. Correct SITE_INTERFACE in the site profile." >&2
    exit 1
fi
interface=$(interface_of "$VLLM_HOST_IP")
export VLLM_HOST_IP NCCL_SOCKET_IFNAME=$interface GLOO_SOCKET_IFNAME=$interface
[[ -z ${SITE_IB_HCA:-} ]] || export NCCL_IB_HCA=$SITE_IB_HCA

# Caches of this job alone: a shared one breaks when two jobs compile at once. Short, for sockets' names are limited.
scratch=${SITE_SCRATCH:-/tmp}/vllm-$SLURM_JOB_ID-$rank
rm -rf "$scratch" # of an earlier try on this node that was killed, when the job was requeued
mkdir -p "$scratch" || { echo "failed: $scratch cannot be made on $(hostname). Correct SITE_SCRATCH in the site profile." >&2; exit 1; }
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch VLLM_CACHE_ROOT=$scratch/vllm TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton
# What vLLM once learned about each kind of model is shared, as it costs every start some seconds to learn again.
mkdir -p ~/.cache/vllm/modelinfos "$scratch/vllm" 2>/dev/null && ln -s ~/.cache/vllm/modelinfos "$scratch/vllm/"
export VLLM_ENGINE_READY_TIMEOUT_S=${VLLM_ENGINE_READY_TIMEOUT_S:-3600} # 400 GB may take longer to read than vLLM's 10 minutes
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 PYTHONUNBUFFERED=1 PYTHONPATH=$WORKSHOP_ROOT${PYTHONPATH:+:$PYTHONPATH}

enter_runtime() { # sets `runtime`, what stands before the command
    runtime=()
    if [[ -n ${SITE_MODULES:-} ]]; then
        set +u # not every module system holds with it
        # shellcheck disable=SC2086 # several modules
        module load $SITE_MODULES || { echo "failed: module load $SITE_MODULES did not work on $(hostname)." >&2; exit 1; }
        set -u
    fi
    case ${SITE_RUNTIME:-venv} in
    venv)
        local venv=${SITE_VENV:-$WORKSHOP_ROOT/.venv}
        [[ -x $venv/bin/vllm ]] || { echo "failed: no vLLM in $venv on $(hostname). Run make setup there, or correct SITE_VENV." >&2; exit 1; }
        export PATH=$venv/bin:$PATH
        ;;
    module) ;;
    apptainer) runtime=(apptainer exec --nv --bind "$WORKSHOP_ROOT,$WORKSHOP_HOME,$scratch${SITE_MODELS:+,$SITE_MODELS}${SERVE_CLASS:+,$SERVE_CLASS}" "$SITE_IMAGE") ;;
    *) echo "failed: SITE_RUNTIME is $SITE_RUNTIME; it must be venv, module or apptainer." >&2; exit 1 ;;
    esac
}

# shellcheck disable=SC2329 # a trap calls it
end_now() { # ask, and insist after 12 s
    kill -TERM "$child" 2>/dev/null
    local deadline=$((SECONDS + 12))
    while kill -0 "$child" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.1; done
    kill -KILL -- "-$child" 2>/dev/null
}

enter_runtime
"${runtime[@]}" "$@" </dev/null &
child=$!
trap end_now TERM INT HUP
echo "$child" >"$JOB_DIR/rank-$rank.pid"
while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done # a trap interrupts wait
kill -KILL -- "-$child" 2>/dev/null # workers that outlive their parent would hold the GPUs' memory
exit "$status"

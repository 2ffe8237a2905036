#!/usr/bin/env bash
# A real Slurm cluster on this machine: a controller, and nodes that are network namespaces with pretend GPUs.
#   cluster.sh up [N]    start it with N nodes (1 to 4; default 2)
#   cluster.sh down      stop it and remove everything it made
#   cluster.sh status    what is running
# All of its files are in one folder: ${WORKSHOP_TESTBED:-/tmp/workshop-testbed}
set -uo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STATE=$(realpath -m "${WORKSHOP_TESTBED:-/tmp/workshop-testbed}")
LINK=workshop                  # on the host: the bridge workshop0 (10.77.0.1) and a link for each node, workshop1...
BRIDGE=${LINK}0
NETNS=workshop-node            # namespaces workshop-node1...; inside, the hosts are called node1...
NET=10.77.0
PACKAGES=(slurm-wlm munge iproute2 curl)
COMMANDS=(slurmctld slurmd sinfo munged ip curl)
export SLURM_CONF=$STATE/slurm.conf

say() { printf '%s\n' "$*"; }

# wait_for SECONDS COMMAND...: until the command succeeds
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

# fail WHY [LOG]: the cause, the end of the log that tells more, nothing left behind
fail() {
  say "Cluster not started: $1" >&2
  if [[ -s ${2:-} ]]; then
    say "The end of ${2##*/}:" >&2
    tail -n 8 "$2" | sed 's/^/  /' >&2
  fi
  take_down
  exit 1
}

# ---- what is there ------------------------------------------------------------------------------------------------

# ours PID: is it a daemon of this cluster (and not an unreaped zombie, which has no environment)?
ours() {
  [[ $(cat "/proc/$1/comm" 2>/dev/null) =~ ^(munged|slurmctld|slurmd|slurmstepd)$ ]] &&
    grep -qzFx "SLURM_CONF=$SLURM_CONF" "/proc/$1/environ" 2>/dev/null
}

# pid NAME: the process id of munged, ctl or nodeN, when it is running
pid() {
  local number
  number=$(cat "$STATE/run/$1.pid" 2>/dev/null) && ours "$number" && say "$number"
}

running() { pid "$1" >/dev/null; }
stopped() { ! running "$1"; }
daemons() { for file in "$STATE"/run/*.pid; do [[ -e $file ]] && basename "$file" .pid; done; }
namespaces() { ip netns list 2>/dev/null | awk -v p="$NETNS" 'index($1, p) == 1 {print $1}'; }
bridge_there() { ip link show "$BRIDGE" &>/dev/null; }
idle() { [[ $(timeout 10 sinfo -h -N -p gpu -o %T 2>/dev/null | grep -c '^idle$') == "$1" ]]; }
nodes_up() { cat "$STATE/nodes" 2>/dev/null || say 0; }

healthy() {
  local name
  for name in munged ctl $(seq -f node%g "$(nodes_up)"); do running "$name" || return 1; done
  timeout 10 sinfo &>/dev/null
}

# ---- down ---------------------------------------------------------------------------------------------------------

no_jobs() { [[ -z $(timeout 5 squeue -h 2>/dev/null) ]]; }

namespace_empty() {
  local pids
  pids=$(ip netns pids "$1" 2>/dev/null)
  [[ -z $pids ]] && return
  # shellcheck disable=SC2086  # several numbers
  kill -KILL $pids 2>/dev/null
  return 1
}

take_down() {
  local name number process job jobs=()
  if running ctl; then # jobs get SIGTERM and a moment to end by themselves
    mapfile -t jobs < <(timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
    timeout 5 scancel "${jobs[@]}" &>/dev/null
    wait_for 10 no_jobs
  fi
  for name in $(daemons | grep -v munged) munged; do
    number=$(pid "$name") || continue
    kill -TERM "$number" 2>/dev/null
    wait_for 5 stopped "$name" || kill -KILL "$number" 2>/dev/null
  done
  for process in /proc/[0-9]*; do # daemons that no file tells of
    ours "${process#/proc/}" && kill -KILL "${process#/proc/}" 2>/dev/null
  done
  for name in $(namespaces); do
    wait_for 10 namespace_empty "$name"
    ip netns delete "$name"
  done
  for job in "${jobs[@]}"; do rm -rf "/tmp/vllm-$job"-*; done # scratch folders of jobs that were killed above
  for number in 1 2 3 4 0; do ip link delete "$LINK$number" 2>/dev/null; done
  if [[ -e $STATE/made-run-netns && -z $(ls -A /run/netns 2>/dev/null) ]]; then
    umount /run/netns 2>/dev/null
    rmdir /run/netns 2>/dev/null
  fi
  [[ -O $STATE && -e $STATE/nodes ]] && rm -rf -- "$STATE"
}

down() {
  need_root
  if [[ ! -e $STATE/nodes && -z $(namespaces) ]] && ! bridge_there; then
    say "No cluster is up."
    return
  fi
  take_down
  say "The cluster is down and removed."
}

# ---- up -----------------------------------------------------------------------------------------------------------

need_root() {
  ((EUID == 0)) && return
  say "The test cluster makes network namespaces and starts Slurm's daemons, which needs root: run this with sudo." >&2
  exit 1
}

need_packages() {
  local command missing=()
  for command in "${COMMANDS[@]}"; do command -v "$command" >/dev/null || missing+=("$command"); done
  ((${#missing[@]})) || return 0
  if ! command -v apt-get >/dev/null; then
    say "The test cluster is made for Debian and Ubuntu: here ${missing[*]} would have to be installed first (Slurm, munge, iproute2, curl)." >&2
    exit 1
  fi
  say "Installing ${PACKAGES[*]} (needed: ${missing[*]}) ..."
  local log
  log=$(mktemp)
  if ! "$HERE/../../requirements/debian.sh" "${PACKAGES[@]}" >"$log" 2>&1; then
    say "Cluster not started: apt-get could not install ${PACKAGES[*]}:" >&2
    tail -n 8 "$log" | sed 's/^/  /' >&2
    rm -f "$log"
    exit 1
  fi
  rm -f "$log"
}

make_files() {
  local name file
  umask 022
  mkdir -p "$STATE" 2>/dev/null || fail "the folder $STATE cannot be made"
  say "$1" >"$STATE/nodes" # also the mark that the folder is ours to remove
  mkdir -p "$STATE"/{munge,run,log,dev,spool/ctl}
  for name in $(seq -f node%g "$1"); do mkdir -p "$STATE/spool/$name"; done
  for file in slurm.conf gres.conf; do
    sed -e "s|@STATE@|$STATE|g" -e "s|@NODES@|$1|g" "$HERE/$file.in" >"$STATE/$file"
  done
  if (($(slurmd -V | grep -o '[0-9]*' | head -n 1) < 23)); then
    cp "$HERE/cgroup.conf" "$STATE/cgroup.conf"
  else # newer releases can do without
    say "CgroupPlugin=disabled" >"$STATE/cgroup.conf"
  fi
  for file in 0 1 2 3; do
    mknod -m 666 "$STATE/dev/gpu$file" c 1 3 || fail "device files cannot be made in $STATE (a container without the right to mknod?)"
  done
  (umask 077 && head -c 1024 /dev/urandom >"$STATE/munge/key")
  {
    say "127.0.0.1 localhost"
    say "$NET.1 ctl"
    for name in $(seq "$1"); do say "$NET.1$name node$name"; done
  } >"$STATE/hosts"
}

make_network() {
  local number log=$STATE/log/network.log
  [[ -e /run/netns ]] || touch "$STATE/made-run-netns"
  {
    ip link add "$BRIDGE" type bridge && ip address add "$NET.1/24" dev "$BRIDGE" && ip link set "$BRIDGE" up
  } 2>"$log" || fail "the network bridge $BRIDGE cannot be made" "$log"
  for number in $(seq "$1"); do
    {
      ip netns add "$NETNS$number" &&
        ip link add "$LINK$number" type veth peer name eth0 netns "$NETNS$number" &&
        ip link set "$LINK$number" master "$BRIDGE" up &&
        ip -n "$NETNS$number" link set lo up &&
        ip -n "$NETNS$number" address add "$NET.1$number/24" dev eth0 &&
        ip -n "$NETNS$number" link set eth0 up
    } 2>"$log" || fail "the network of node$number cannot be made" "$log"
  done
}

# start NAME COMMAND...: a daemon in the background, its output in log/NAME.out, its process id in run/NAME.pid
start() {
  local name=$1
  shift
  setsid "$@" </dev/null >"$STATE/log/$name.out" 2>&1 9<&- &
  say $! >"$STATE/run/$name.pid"
  disown
}

# as_host NAME COMMAND...: with a hostname and an /etc/hosts of its own (the mount is seen by this command only)
as_host() {
  # shellcheck disable=SC2016  # expanded by the inner bash
  AS_HOST=(unshare --uts --mount bash -c 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"' "$1" "$STATE/hosts" "${@:2}")
}

start_node() {
  as_host "node$1" slurmd -D -N "node$1"
  start "node$1" nsenter --net="/run/netns/$NETNS$1" "${AS_HOST[@]}"
}

# a slurmd on a busy machine was seen to say nothing for a minute after its start, once in some dozens of clusters
start_the_silent_again() {
  local name
  for name in $(not_idle); do
    say "$name does not answer: starting it again ..."
    kill -KILL "$(cat "$STATE/run/$name.pid")"
    start_node "${name#node}"
  done
}

up() {
  local count=$1 number name
  need_root
  [[ $count =~ ^[1-4]$ ]] || { say "How many nodes? 1 to 4, not '$count'." >&2; exit 1; }
  need_packages
  if bridge_there && [[ ! -e $STATE/nodes ]]; then
    say "A test cluster is up on this machine whose files are not in $STATE: cluster.sh down, with WORKSHOP_TESTBED set to its folder, removes it." >&2
    exit 1
  fi
  if [[ -e $STATE/nodes ]]; then
    if [[ $(nodes_up) == "$count" ]] && healthy; then
      say "The cluster is already up with $count nodes."
      next_steps
      return
    fi
    say "Removing the cluster of $(nodes_up) nodes that was here ..."
    take_down
  elif [[ -e $STATE && (! -O $STATE || -n $(ls -A "$STATE")) ]]; then
    say "$STATE is not an empty folder of this user; choose another with WORKSHOP_TESTBED." >&2
    exit 1
  fi
  trap 'fail "interrupted"' INT TERM

  make_files "$count"
  make_network "$count"

  start munged munged --foreground --socket="$STATE/munge/socket" --key-file="$STATE/munge/key" --seed-file="$STATE/munge/seed" \
    --pid-file="$STATE/munge/pid" --log-file="$STATE/log/munged.log"
  wait_for 10 test -S "$STATE/munge/socket" || fail "munged does not start" "$STATE/log/munged.out"
  as_host ctl slurmctld -D
  start ctl "${AS_HOST[@]}"
  for number in $(seq "$count"); do start_node "$number"; done

  wait_for 30 settled "$count" || start_the_silent_again
  wait_for 60 settled "$count"
  for name in munged ctl $(seq -f node%g "$count"); do
    running "$name" || fail "the daemon of $name ended" "$(guilty "$name")"
  done
  idle "$count" || fail "after 90 seconds not all nodes are idle ($(sinfo -h -N -p gpu -o '%N %T' 2>&1 | paste -sd, -))" "$(guilty "$(not_idle | grep -m 1 . || say ctl)")"
  for number in $(seq 2 "$count"); do # slurmd's port on the others, as seen from node1
    nsenter --net="/run/netns/${NETNS}1" timeout 5 bash -c ": </dev/tcp/$NET.1$number/6818" 2>/dev/null ||
      fail "node1 cannot reach node$number over the bridge $BRIDGE (a firewall? iptables -I FORWARD -i $BRIDGE -o $BRIDGE -j ACCEPT lets it through)"
  done
  trap - INT TERM
  say "A Slurm cluster of $count nodes is up."
  next_steps
}

# nothing more to wait for: all nodes idle, or a daemon ended
settled() {
  local name
  for name in munged ctl $(seq -f node%g "$1"); do ended "$name" && return; done
  idle "$1"
}

ended() { ! kill -0 "$(cat "$STATE/run/$1.pid" 2>/dev/null)" 2>/dev/null; }
not_idle() { sinfo -h -N -p gpu -o '%N %T' 2>/dev/null | awk '$2 != "idle" {print $1}'; }

guilty() { # the log that tells why
  if [[ -s $STATE/log/$1.log ]]; then say "$STATE/log/$1.log"; else say "$STATE/log/$1.out"; fi
}

next_steps() {
  cat <<NEXT

  export SLURM_CONF=$SLURM_CONF      # in every shell that is to use it
  sinfo                              # partitions and nodes
  srun --nodes=$(nodes_up) hostname            # one task on each node
  sbatch your_script.sbatch          # a job; squeue, scontrol show job, scancel

Logs: $STATE/log. To remove it all: make cluster-down
NEXT
}

status() {
  local name
  if [[ ! -e $STATE/nodes ]]; then
    say "No cluster is up."
    return 1
  fi
  for name in munged ctl $(seq -f node%g "$(nodes_up)"); do
    if running "$name"; then say "$name: running, process $(pid "$name")"; else say "$name: NOT running (log: $(guilty "$name"))"; fi
  done
  running ctl && timeout 10 sinfo && timeout 10 squeue
}

exec 9<"${BASH_SOURCE[0]}"
case ${1:-} in
  up) flock 9 && up "${2:-2}" ;;
  down) flock 9 && down ;;
  status) status ;;
  *)
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac

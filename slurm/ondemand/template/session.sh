# What the session's three scripts share: checks before anything starts, the participant's notebooks, JupyterLab, and an
# orderly end. before.sh sets its variables; needs bash 4.4 or newer and what Slurm's nodes have, no Python of its own.
#
#   CLASS_FOLDER   what helpers.class_install made         MINE      the participant's folder, with $HOME or $USER in it
#   MODULES        modules that bring its Python           PORTAL    the portal's address, or empty
#   SERVER, HOURS  a server to start, and for how long     host      this node, as the portal names it (OnDemand sets it)
# shellcheck shell=bash
umask 077
: "${SESSION:=$PWD}" # the session's own folder, of mode 0700
JOB=${SLURM_JOB_ID:-$$}
export SESSION

say() { # to the job's log, and to the file that the session's card shows
    printf '%s\n' "$*" | tee -a "$SESSION/messages"
}

fail() { # one sentence with the mend; the session ends
    say "Not started: $*"
    exit 1
}

prepare_session() {
    rm -f "$SESSION/reserve" # a full home folder has this much room again for our log
    chmod 700 "$SESSION"
    MINE=${MINE//\$HOME/$HOME} MINE=${MINE//\$USER/${USER:=$(id -un)}}
    export MINE USER
    check_class_folder
    enter_environment
    check_room
    hold_session
    trap end_session EXIT
    trap 'ENDED_BY=${ENDED_BY:-"it was deleted, or Slurm ended it"}; exit 143' TERM INT HUP
    trap time_is_nearly_up USR1
    copy_materials
    # shellcheck disable=SC2034 # OnDemand writes it into the connection file, of mode 0600, for the card's button
    password=$(random_word)
    export PASSWORD_HASH
    PASSWORD_HASH=$(hash_of "$password")
}

# ---- checks ---------------------------------------------------------------------------------------------------------

check_class_folder() {
    [[ -d $CLASS_FOLDER ]] && [[ ! -r $CLASS_FOLDER || ! -x $CLASS_FOLDER ]] &&
        fail "You may not read $CLASS_FOLDER, which belongs to the group $(stat -c %G "$CLASS_FOLDER"); you are in $(id -Gn). Ask your instructor to have you added to it."
    [[ -d $CLASS_FOLDER ]] ||
        fail "$CLASS_FOLDER is not on $(hostname), or you may not enter the folder above it. The app's settings.yml must name a folder that every node mounts."
    [[ -s $CLASS_FOLDER/materials/SHA256SUMS ]] ||
        fail "$CLASS_FOLDER holds no materials of the workshop. Run python -m helpers.class_install $CLASS_FOLDER again."
}

enter_environment() { # the class's Python, and nothing of the participant's own that could change it
    if [[ -n $MODULES ]]; then
        load_modules || fail "module load $MODULES did not work on $(hostname). Correct modules in the app's settings.yml."
    fi
    unset PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
    PYTHON=$CLASS_FOLDER/.venv/bin/python
    "$PYTHON" -Ic '' 2>/dev/null ||
        fail "$PYTHON does not start on $(hostname). Run python -m helpers.class_install $CLASS_FOLDER with a Python that the compute nodes have too, or name its module in the app's settings.yml."
    export PYTHON PATH=$CLASS_FOLDER/.venv/bin:$PATH PYTHONPATH=$CLASS_FOLDER
}

load_modules() { # a job has no login shell, so `module` may have to be defined first
    local definition
    for definition in /etc/profile.d/{z00_lmod,lmod,modules}.sh; do
        declare -F module >/dev/null && break
        # shellcheck disable=SC1090 # the site's
        [[ ! -r $definition ]] || source "$definition"
    done
    # shellcheck disable=SC2086 # several modules
    declare -F module >/dev/null && module load $MODULES
}

check_room() { # 1 MB, so that notebooks can be saved; random bytes, which no file system compresses
    mkdir -p "$MINE/.workshop" 2>/dev/null && head -c 1048576 /dev/urandom 2>/dev/null >"$MINE/.workshop/room" &&
        rm "$MINE/.workshop/room" && return
    rm -f "$MINE/.workshop/room"
    [[ ! -d $MINE || -w $MINE ]] || fail "You may not write to $MINE. Correct its permissions, or participant_folder in the app's settings.yml."
    fail "$MINE has no room left (disk full, or your quota used up). Free some space (du -sh ~/* ~/.[!.]* shows where it went) and launch again; your notebooks are as they were."
}

hold_session() { # two JupyterLabs would overwrite each other's notebooks: the first one has them
    local holder mark=$MINE/.workshop/session
    if (set -o noclobber && echo "$JOB" >"$mark") 2>/dev/null; then return; fi
    holder=$(<"$mark")
    if [[ $holder != "$JOB" && -n $(squeue --noheader --jobs "$holder" --states R,PD,CF,S 2>/dev/null) ]]; then
        fail "Your session $holder runs already, with the same notebooks. Go on in its card, or delete that session and launch again."
    fi
    echo "$JOB" >"$mark" # of a session that could not say goodbye
}

# ---- the participant's notebooks ------------------------------------------------------------------------------------

copy_materials() { # what they have not changed follows the course; what they have changed stays as it is
    local sum path listed=$CLASS_FOLDER/materials/SHA256SUMS
    local -A given=() mine=()
    while read -r sum path; do given[$path]=$sum; done < <(cat "$MINE/.workshop/given" 2>/dev/null)
    while read -r sum path; do mine[$path]=$sum; done < <(cd "$MINE" && cut -c67- "$listed" | xargs -d '\n' sha256sum 2>/dev/null)
    while read -r sum path; do
        if [[ -z ${mine[$path]:-} || ${mine[$path]} == "${given[$path]:-}" ]]; then
            [[ ${mine[$path]:-} == "$sum" ]] || give "$path" "$path"
        elif [[ ${mine[$path]} != "$sum" && $sum != "${given[$path]:-}" ]]; then
            give "$path" "${path%.*}.new.${path##*.}"
            say "$path has a newer version, and you have changed yours: it is kept, the new one is ${path%.*}.new.${path##*.}."
        fi
    done <"$listed"
    if ! { cp "$listed" "$MINE/.workshop/given.part" && mv "$MINE/.workshop/given.part" "$MINE/.workshop/given"; }; then no_room; fi
    ln -sfn "$CLASS_FOLDER/slurm" "$MINE/slurm" || no_room # for the labs' sbatch slurm/...
}

give() { # give PATH NAME: whole or not at all
    mkdir -p "$(dirname "$MINE/$2")" && cp "$CLASS_FOLDER/materials/$1" "$MINE/$2.part" && mv "$MINE/$2.part" "$MINE/$2" && return
    rm -f "$MINE/$2.part"
    no_room
}

no_room() { fail "The notebooks could not be copied to $MINE. Free some space there and launch again; what was there is as it was."; }

# ---- JupyterLab -----------------------------------------------------------------------------------------------------

random_word() { head -c 256 /dev/urandom | tr -dc '[:alnum:]' | cut -c-32; }

hash_of() { # what Jupyter's passwd_check takes; on standard input, as arguments are seen by all of the node
    local salt
    salt=$(random_word)
    printf 'sha256:%s:%s' "$salt" "$(printf '%s%s' "$1" "$salt" | sha256sum | cut -d' ' -f1)"
}

choose_port() { # choose_port TRY: from the job's id; vLLM's ports of slurm/lib/network.sh end in 0, 1 and 2
    echo $((20005 + ((JOB + $1 * 97) * 10) % 12000))
}

run_lab() { # JupyterLab until it ends; another port when somebody took ours between choosing and listening
    local try status
    export -n PASSWORD_HASH
    isolate
    trap 'kill -TERM "$LAB" 2>/dev/null' TERM INT HUP
    for try in {0..9}; do
        write_config "$(choose_port "$try")"
        "$PYTHON" -m jupyterlab --config="$SESSION/jupyter_config.py" >>"$SESSION/jupyter.log" 2>&1 </dev/null &
        LAB=$!
        while wait "$LAB"; status=$?; kill -0 "$LAB" 2>/dev/null; do :; done # a trap interrupts wait
        tail -n 5 "$SESSION/jupyter.log" | grep -q "port .* is already in use\|port .* is not available" || break
        echo "port $(choose_port "$try") is taken on $(hostname): trying another"
    done
    rm -rf "$SCRATCH"
    exit "$status"
}

isolate() { # neither this job's Slurm variables nor the participant's own Jupyter reach the lab
    local name
    SCRATCH=$(mktemp -d "/tmp/workshop-$JOB-XXXXXX") # local to the node: sockets and locks want that
    for name in "${!SLURM_@}" "${!SBATCH_@}"; do
        [[ $name == SLURM_CONF ]] || unset "$name"
    done
    export JUPYTER_PATH=$CLASS_FOLDER/share/jupyter JUPYTER_CONFIG_PATH=$CLASS_FOLDER/helpers/static/jupyter
    export JUPYTER_CONFIG_DIR=$SESSION JUPYTER_DATA_DIR=$MINE/.workshop/jupyter
    export JUPYTER_RUNTIME_DIR=$SCRATCH/runtime IPYTHONDIR=$SCRATCH/ipython PYTHONNOUSERSITE=1
    export JUPYTERLAB_SETTINGS_DIR=$MINE/.workshop/settings JUPYTERLAB_WORKSPACES_DIR=$MINE/.workshop/workspaces
    export WORKSHOP_CLASS=$CLASS_FOLDER/class WORKSHOP_ROOT=$CLASS_FOLDER VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
    ln -sfn "$JUPYTER_RUNTIME_DIR" "$SESSION/runtime"
    cd "$MINE" || exit 1
}

write_config() { # write_config PORT: one listener, behind the portal's proxy, with one kernel
    # shellcheck disable=SC2154 # host comes from OnDemand
    cat >"$SESSION/jupyter_config.py" <<CONFIG
import os

c.ServerApp.ip = "0.0.0.0"
c.ServerApp.port = $1
c.ServerApp.port_retries = 0
c.ServerApp.base_url = "/node/$host/$1/"
c.ServerApp.root_dir = os.environ["MINE"]
c.ServerApp.open_browser = False
c.ServerApp.allow_root = $([[ $EUID == 0 ]] && echo True || echo False)
# The proxy rewrites Host, so requests from the portal's pages look foreign. What keeps foreign pages out is the cookie,
# which browsers send from the portal's own site only.
c.ServerApp.allow_remote_access = True
c.ServerApp.allow_origin = os.environ["PORTAL"] or "*"
c.ServerApp.disable_check_xsrf = True
c.ServerApp.trust_xheaders = True
c.ServerApp.identity_provider_class = "jupyter_server.auth.identity.PasswordIdentityProvider"
c.PasswordIdentityProvider.hashed_password = "$PASSWORD_HASH"
c.PasswordIdentityProvider.allow_password_change = False
c.IdentityProvider.token = ""
c.IdentityProvider.cookie_options = {"samesite": "Lax"}
c.KernelSpecManager.ensure_native_kernel = False
c.KernelSpecManager.allowed_kernelspecs = {"python3"}
c.LanguageServerManager.autodetect = False
c.LabApp.default_url = "/lab/tree/notebooks/00_start_here.ipynb"
c.LabApp.extension_manager = "readonly"
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
CONFIG
}

wait_for_lab() { # until JupyterLab listens, on a port that nobody else can have; sets port
    local deadline=$((SECONDS + ${LAB_SECONDS:-300})) found
    while ((SECONDS < deadline)); do
        # Jupyter writes this file after it has bound its port.
        for found in "$SESSION"/runtime/jpserver-*.json; do
            [[ -s $found ]] || continue
            port=$(sed -n 's/.*"port": \([0-9]*\).*/\1/p' "$found")
            [[ -z $port ]] || { say "JupyterLab is ready on $(hostname), after $SECONDS s; your notebooks: $MINE"; return; }
        done
        kill -0 "$SCRIPT_PID" 2>/dev/null || fail "JupyterLab ended before it was ready: $(last_words). Its log: $SESSION/jupyter.log"
        sleep 0.1
    done
    fail "JupyterLab was not ready after ${LAB_SECONDS:-300} s; its log: $SESSION/jupyter.log"
}

last_words() { grep -v '^ *$' "$SESSION/jupyter.log" 2>/dev/null | tail -n 1 | sed 's/^\[.*\] *//; s/\.*$//'; }

# ---- a server of the participant's own ------------------------------------------------------------------------------

start_server() { # in the background: the notebooks find it by its connection file
    export WORKSHOP_CLASS=$CLASS_FOLDER/class PYTHONNOUSERSITE=1
    case $SERVER in
    none | "") ;;
    small)
        say "The small Llama starts on this node, within a minute; notebooks find it by themselves."
        "$PYTHON" -m helpers.keeper --model "$CLASS_FOLDER/helpers/tiny/model" --owner $$ >"$SESSION/server.log" 2>&1 </dev/null &
        KEEPER=$!
        watch_keeper &
        ;;
    *) submit_server & ;;
    esac
}

watch_keeper() { # tell when it could not start
    until grep -q '^ready ' "$SESSION/server.log"; do
        kill -0 "$KEEPER" 2>/dev/null || { say "The small Llama was not started: $(tail -n 1 "$SESSION/server.log")"; return; }
        sleep 1
    done
}

submit_server() {
    if "$PYTHON" -m helpers.slurm submit "$SERVER" --time "$HOURS:00:00" --json >"$SESSION/server.json" 2>"$SESSION/server.log"; then
        say "Your server $SERVER is job $(server_job); python -m helpers.slurm status shows how it is doing. It ends with this session."
    else
        say "Your server $SERVER was not started: $(tail -n 1 "$SESSION/server.log") The session goes on without it."
    fi
}

server_job() { sed -n 's/.*"job": "\([0-9]*\)".*/\1/p' "$SESSION/server.json" 2>/dev/null; }

# ---- the end --------------------------------------------------------------------------------------------------------

time_is_nearly_up() { # two minutes before the limit; the job's own wait would take this signal for the end
    say "The time limit comes in two minutes. JupyterLab saves by itself; launch again to go on."
    ENDED_BY="its time was over"
    wait "$SCRIPT_PID"
}

end_session() { # the lab, its kernels and the server go; the notebooks stay
    local status=$? pid job
    trap '' USR1 TERM INT HUP
    trap - EXIT
    for pid in "${SCRIPT_PID:-}" "${KEEPER:-}"; do
        [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null
    done
    wait # all clean up behind themselves; Slurm leaves 30 s for it (KillWait)
    job=$(server_job)
    [[ -z $job ]] || scancel --quiet "$job"
    [[ $(cat "$MINE/.workshop/session" 2>/dev/null) != "$JOB" ]] || rm -f "$MINE/.workshop/session"
    [[ -z ${port:-} ]] || say "The session has ended: ${ENDED_BY:-JupyterLab was shut down}. Your notebooks are in $MINE."
    exit "$status"
}

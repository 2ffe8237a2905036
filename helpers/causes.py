"""What makes a vLLM server or its Slurm job fail: how the log says it, what it means, what to do about it.

The patterns are what vLLM 0.32, PyTorch, NCCL, Hugging Face's libraries, Slurm, the kernel and our own slurm/lib/*.sh
print. A log names its root cause once and then its echoes (a peer that closed the connection, an engine that could not
start), so the first cause in this list that any log shows wins, wherever it stands: what is specific comes first, what
usually follows from something else comes last. tests/unit/test_doctor.py says for every pattern where it was seen.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One reason for a failure.

    `pattern` is searched in single lines; the names of its groups may stand in `means` and `mend` in braces. `means`
    says what is wrong (no capital, no full stop), `mend` what to do. A weak cause mostly follows from something else: an
    error that no cause explains goes before it.
    """

    name: str
    pattern: re.Pattern[str]
    means: str
    mend: str
    weak: bool = False

    def sentences(self, match: re.Match[str]) -> tuple[str, str]:
        """What it means and what to do, with what the log line tells filled in."""
        told = {name: (text or "").strip(" .") for name, text in match.groupdict().items()}
        means, mend = (" ".join(text.format(**told).split()) for text in (self.means, self.mend))
        return means.rstrip(": "), mend


def _cause(name: str, pattern: str, means: str, mend: str, *, weak: bool = False) -> Cause:
    return Cause(name, re.compile(pattern), means, mend, weak)


NETWORK = "Set SITE_INTERFACE in the site profile (VLLM_HOST_IP, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME by hand) to the interface that every node has for the others; `ip -4 -o address` lists them"

# fmt: off
CAUSES = [
    # --- files, disks, ports: what hinders any program
    _cause("shared-memory-full", r"Insufficient space in /dev/shm|No space left on device.*/dev/shm|/dev/shm.*No space left on device|\bBus error\b|\bSIGBUS\b|exit code: -7\b|ended with status 135\b",
           "shared memory (/dev/shm) is full: the processes of a node talk through it",
           "Remove what dead jobs left there (`ls -l /dev/shm`), or start the container with more of it (--shm-size, --ipc=host)"),
    _cause("quota-exceeded", r"Disk quota exceeded",
           "your disk quota is used up", "Free some space (`quota -s` shows it), or set WORKSHOP_HOME and HF_HOME to folders with room"),
    _cause("disk-full", r"No space left on device",
           "the disk is full", "Free some space (`df -h` shows where) and start again"),
    _cause("too-many-files", r"Too many open files",
           "the limit on open files is too low", "Raise it with `ulimit -n 65536` before the server starts"),
    _cause("folder-not-writable", r"failed: (?P<folder>\S+) cannot be (?:made|written)|Read-only file system",
           "the folder {folder} cannot be written", "Name one that can: WORKSHOP_HOME for logs and keys, SITE_SCRATCH in the site profile for caches"),
    _cause("permission-denied", r"PermissionError: .*?'(?P<path>[^']+)'|[Ee]rror: .*Permission denied",
           "a file may not be read or written: {path}", "Mend its mode or its owner (`ls -l` shows both), or name another path"),
    _cause("port-taken", r"Address already in use|EADDRINUSE|failed: Port \d+ is taken",
           "the port is taken", "Start without naming a port, or name another"),
    # --- the site profile and the environment
    _cause("site-profile", r"failed: No site profile (?P<file>\S+?):? |failed: SITE_RUNTIME is (?P<runtime>\S+);",
           "the site profile is missing or wrong: {file}{runtime}", "Copy slurm/sites/generic.env to slurm/sites/here.env and fill it in, or set WORKSHOP_SITE to a profile that exists"),
    _cause("module-load", r"failed: module load (?P<modules>.+?) did not work|The following module\(s\) are unknown|Unable to locate a modulefile",
           "the modules do not load {modules}", "Correct SITE_MODULES in the site profile; `module avail` lists what there is"),
    _cause("no-vllm", r"failed: no vLLM in|No module named '?vllm'?$|(?:execve\(\)|exec|line \d+): \S*vllm: (?:command not found|No such file)|vllm: command not found|PackageNotFoundError: .*vllm",
           "the environment holds no vLLM", "Run `make setup` there, or correct SITE_RUNTIME and SITE_VENV in the site profile"),
    _cause("no-curl", r"failed: No curl on", "the node has no curl, which the launcher needs", "Load a module that brings it (SITE_MODULES)"),
    _cause("ray-missing", r"Failed to import Ray|No module named 'ray'|ray: command not found|execve\(\): ray: No such file",
           "the environment holds no Ray", "Leave LAUNCHER=ray out (vLLM's own launcher needs none), or install it: pip install ray"),
    _cause("ray-version", r"RuntimeError: Version mismatch: The cluster was started with",
           "the nodes run different versions of Ray or Python", "Use the same environment on every node"),
    _cause("ray-unsupported", r"current platform (?P<platform>\S+) does not support ray",
           "vLLM does not run on Ray here (platform {platform})", "Leave LAUNCHER=ray out: vLLM's own launcher serves several nodes too"),
    _cause("ray-too-few-gpus", r"Cannot provide a placement group|No available node types can fulfill",
           "the Ray cluster has fewer GPUs than TP x PP asks for", "See `ray status`; lower TP or PP, or wait until every node has joined"),
    _cause("module-missing", r"ModuleNotFoundError: No module named '(?P<module>[^']+)'|ImportError: (?P<library>\S+\.so\S*): cannot open shared object",
           "the environment lacks {module}{library}", "Install what requirements/ lists (`make setup`), or load the module that brings it"),
    _cause("no-compiler", r"Python\.h: No such file|Failed to find C compiler|No working C\+\+ compiler|Compiler: \S+ is not found|InvalidCxxCompiler|stddef\.h: No such file|No such file or directory: '(?:gcc|g\+\+|cc|c\+\+)'",
           "vLLM cannot compile its kernels: a C++ compiler or Python's headers are missing", "Load a compiler module (SITE_MODULES) and a Python with headers (python3-dev), or start with --enforce-eager, which serves more slowly"),
    # --- flags and layout
    _cause("unknown-flag", r"unrecognized arguments: (?P<flags>.+)",
           "vLLM does not know {flags}", "`vllm serve --help=all` lists its flags"),
    _cause("flag-value", r"error: argument (?P<flag>\S+): (?P<problem>.+)",
           "vLLM does not take that value of {flag}: {problem}", "`vllm serve --help=all` says what it takes"),
    _cause("heads-not-divisible", r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<tp>\d+)\)",
           "TP{tp} does not divide the model's {heads} attention heads", "Choose a TP that divides {heads}"),
    _cause("tp-too-large", r"is not divisible by weight quantization block|caused by too large tensor parallel size|AssertionError: \d+ is not divisible by \d+",
           "TP cuts this model's matrices into pieces that its quantization or its shape does not allow", "Lower TP and raise PP by the same factor, or add --enable-expert-parallel for a mixture of experts"),
    _cause("nodes-not-divisible", r"global world_size \((?P<ranks>\d+)\) must be divisible by nnodes_within_dp \((?P<nodes>\d+)\)|= (?P<all>\d+) ranks cannot be shared evenly by (?P<n>\d+) nodes|`--nnodes (?P<nnodes>\d+)` must evenly divide the total world size \((?P<world>\d+)\)",
           "TP x PP x DP = {ranks}{all}{world} ranks cannot be shared evenly by {nodes}{n}{nnodes} nodes", "Change TP, PP or --nodes so that every node gets as many"),
    _cause("too-few-gpus", r"World size \((?P<ranks>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)|takes (?P<asked>\d+) GPUs and the job has (?P<has>\d+)|invalid device ordinal",
           "TP x PP asks for {ranks}{asked} GPUs and there are {gpus}{has}", "Change TP and PP, or --nodes and --gpus-per-node, until TP x PP equals nodes x GPUs"),
    _cause("pipeline-unsupported", r"Pipeline parallelism is not supported for this model",
           "this model cannot be cut into pipeline stages", "Set PP=1 and raise TP instead"),
    _cause("cpu-pipeline-eager", r"in sync_and_gather_intermediate_tensors",
           "on a CPU, pipeline stages do not work with --enforce-eager", "Leave --enforce-eager out"),
    _cause("cpu-binding", r"Not enough allowed NUMA nodes|number of CPU id list .* doesn't match local world size",
           "the ranks on this CPU have no cores of their own", "Name them: VLLM_CPU_OMP_THREADS_BIND=\"0|1\" gives rank 0 core 0 and rank 1 core 1"),
    # --- memory
    _cause("max-model-len", r"User-specified max_model_len \((?P<asked>\d+)\) is greater than .*?=(?P<most>\d+)",
           "the model reads at most {most} tokens", "Start with --max-model-len {most} instead of {asked}"),
    _cause("kv-cache-too-small", r"max seq len \((?P<length>[\d,]+)\).*?estimated maximum model length is (?P<fits>[\d,]+)",
           "{length} tokens do not fit in the KV cache", "Start with --max-model-len {fits} or give the cache more memory"),
    _cause("no-kv-cache", r"No available memory for the cache blocks|max seq len \((?P<length>[\d,]+)\).*larger than the available KV cache",
           "the weights leave no room for the KV cache", "Use more GPUs (a higher TP or PP), a quantized model (FP8), or a lower --max-model-len and --max-num-seqs"),
    _cause("gpu-in-use", r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)",
           "only {free} of {total} GiB are free on GPU {device}: another process holds the rest", "End it (`nvidia-smi` names it; workers of a dead server are the usual ones), or lower --gpu-memory-utilization"),
    _cause("gpu-out-of-memory", r"(?:CUDA|HIP) out of memory|Cuda failure 'out of memory'|CUDA error: out of memory|torch\.(?:cuda\.)?OutOfMemoryError",
           "a GPU ran out of memory", "Use more GPUs (a higher TP or PP) or an FP8 model; if only little is missing, lower --max-num-seqs, --max-num-batched-tokens or --gpu-memory-utilization. `python -m helpers.memory` computes what fits"),
    _cause("slurm-out-of-memory", r"oom[-_]kill|OOM Killed|task \d+: Out Of Memory|JobState=OUT_OF_MEMORY|Exceeded (?:job|step) memory limit",
           "the job used more main memory than it asked for, and Slurm killed it", "Ask for more with --mem: loading takes about the size of the weights"),
    _cause("cpu-memory-in-use", r"Available memory on node \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)",
           "only {free} of {total} GiB of main memory are free, less than the server was told to take", "Lower VLLM_CPU_KVCACHE_SPACE (GiB) or --gpu-memory-utilization, or end other programs"),
    _cause("out-of-memory", r"Cannot allocate memory|MemoryError|std::bad_alloc|DefaultCPUAllocator: (?:can't allocate|not enough) memory",
           "the machine ran out of memory", "Close other programs, or lower VLLM_CPU_KVCACHE_SPACE (GiB of KV cache)"),
    # --- the model
    _cause("gated-model", r"[Gg]ated repo|Access to model \S+ is restricted|\b40[13] Client Error",
           "you have no access to this model on Hugging Face: it is gated or the token is wrong", "Ask for access on its page, set HF_TOKEN, or name a folder that holds the weights"),
    _cause("shard-missing", r"Weight files referenced in index but missing: (?P<files>.+)|No such file or directory: \"?'?(?P<file>\S+\.safetensors)",
           "weights are missing: {files}{file}", "Download the model again; the download continues where it stopped"),
    _cause("damaged-model", r"SafetensorError|JSONDecodeError|is not a valid JSON file",
           "a file of the model is damaged or cut short", "Copy or download the model again"),
    _cause("model-offline", r"LocalEntryNotFoundError|outgoing traffic has been disabled|OfflineModeIsEnabled|couldn't find them in the cached files|couldn't connect to 'https://huggingface\.co'",
           "the model is not on this machine and the node does not reach Hugging Face", "Download it first (stage_weights.sbatch), and name its folder or set HF_HOME to the cache that holds it"),
    _cause("model-not-found", r"is not a local folder and is not a valid model identifier|Repo id must be|Can't load the configuration|does not appear to have a file named|Invalid repository ID|Cannot find any model weights|Repository Not Found|failed: No model in",
           "the model was not found", "Give a folder that holds config.json and the weights"),
    _cause("tokenizer-missing", r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for",
           "the model's folder holds no tokenizer", "Copy tokenizer.json and tokenizer_config.json into it, or name a folder that has them with --tokenizer"),
    _cause("remote-code", r"contains custom code which must be executed|trust[-_]remote[-_]code=True",
           "the model brings Python code of its own, which vLLM runs only when told to", "Read that code, then start with --trust-remote-code"),
    _cause("unsupported-model", r"model type `(?P<kind>[^`]+)` but Transformers does not recognize|Model architectures (?P<architectures>\[.*?\]) (?:are not supported|failed)",
           "this vLLM does not know models of the kind {kind}{architectures}", "Use another model, or a newer vLLM and transformers"),
    _cause("unsupported-gpu", r"is not supported for the current GPU|only supported on GPUs with compute capability|no kernel image is available|requires GPU compute capability|Failed to find a kernel that can implement",
           "this GPU is too old for the model's number format or quantization", "Use a newer GPU, a model in another format, or --dtype half where only BF16 is missing"),
    _cause("quantization-mismatch", r"Unknown quantization method|Quantization method specified in the model config|is not supported for quantization method|no module or parameter named '\S+' in",
           "the weights do not fit the quantization that the model's config.json or -q names", "Leave -q out, or use a checkpoint made with that method"),
    # --- the network between nodes
    _cause("wrong-interface", r"Unable to find (?:address|interface) for:? ?(?P<name>\S*)|has no interface (?P<site>\S*) ?with an IPv4|[Nn]o socket interface found|Could not find interface",
           "a node has no network interface {name}{site}", NETWORK),
    _cause("no-route", r"No route to host|Network is unreachable",
           "a node has no route to another: a firewall or a wrong interface", NETWORK),
    _cause("gloo-mesh", r"Gloo connectFullMesh failed",
           "the ranks reach the first node but not each other: they use the wrong network interface", NETWORK),
    # --- GPUs and their driver
    _cause("gpu-broken", r"uncorrectable ECC|\bXid\b.*\b(?:48|63|64|74|79|94|95|119|120)\b|fallen off the bus|ECC_UNCORRECTABLE|uncorrectable NVLink",
           "a GPU is broken", "Start again without that node (sbatch --exclude=NODE) and tell the cluster's staff"),
    _cause("fabric-manager", r"system not yet initialized|Error 802",
           "the GPUs' switch is not set up (the fabric manager does not run)", "Start again without that node (sbatch --exclude=NODE) and tell the cluster's staff"),
    _cause("driver-too-old", r"NVIDIA driver on your system is too old|driver version is insufficient|Error 80[34]|forward compatibility was attempted",
           "the GPU driver is older than this CUDA build needs", "Use a vLLM built for an older CUDA, or nodes with a newer driver"),
    _cause("no-gpu", r"No CUDA GPUs are available|Found no NVIDIA driver|Failed to infer device type|no CUDA-capable device|NVML Shared Library Not Found",
           "no GPU is visible", "Ask Slurm for GPUs (--gpus-per-node), start the container with --nv, and look at CUDA_VISIBLE_DEVICES"),
    _cause("illegal-instruction", r"\bIllegal instruction\b|\bSIGILL\b|exit code: -4\b|ended with status 132\b",
           "the processor lacks an instruction that vLLM needs (AVX2)", "Use a newer machine"),
    # --- what Slurm did
    _cause("time-limit", r"DUE TO TIME LIMIT|JobState=TIMEOUT",
           "the job reached its time limit", "Ask for more with --time, or start it again"),
    _cause("node-failure", r"DUE TO NODE FAILURE|[Nn]ode failure on|JobState=(?:NODE_FAIL|BOOT_FAIL)|cancelled by node failure",
           "a node failed", "Start the job again, with --exclude=NODE if it is the same node twice"),
    _cause("preempted", r"DUE TO PREEMPTION|JobState=PREEMPTED|DUE TO JOB REQUEUE",
           "a job of higher priority took the nodes", "Start the job again, or use a partition that is not preempted"),
    _cause("slurm-refused", r"Invalid generic resource|Step requested GRES but|Unable to create step for job \d+: |Requested node configuration is not available|Invalid (?:account|partition|qos)",
           "Slurm refuses what the job asks for", "Compare --gpus-per-node, --partition and --account with `sinfo -o '%P %G %l'`"),
    # --- waiting in vain
    _cause("engine-ready-timeout", r"Timed out waiting for (?:new )?engine core processes to start",
           "vLLM gave up waiting for its engine: the weights load too slowly", "Set VLLM_ENGINE_READY_TIMEOUT_S=3600 (seconds), and keep the weights on a fast file system"),
    _cause("refused-by-vllm", r"^ *Value error, (?P<text>.+?)(?: \[type=|$)|NotImplementedError: (?P<missing>.+)",
           "vLLM refuses these settings: {text}{missing}", "Change the flag that it names"),
    _cause("nccl-timeout", r"Watchdog caught collective operation timeout",
           "the GPUs waited for each other until NCCL gave up: one rank hangs or died", "Read the log of the rank that is silent; if all are alive, try --enforce-eager and NCCL_DEBUG=INFO"),
    _cause("cancelled", r"\*\*\* JOB \d+ ON \S+ CANCELLED AT|JobState=CANCELLED|^cancelled: ",
           "the job was cancelled", "Start it again when you need it"),
    # --- a process died, without a word
    _cause("gpu-fault", r"CUDA error: (?P<text>(?!out of memory)[^.]+)|CUBLAS_STATUS_\w+|illegal memory access",
           "a GPU kernel failed: {text}", "Start again; if it fails again, try --enforce-eager, then another node"),
    _cause("killed", r"Failed core proc\(s\): \{[^}]*: -9\b|exit code: -9\b|died with exit code -9\b|task \d+: Killed|ended with status 137\b",
           "the engine was killed, most likely because the machine ran out of memory", "Close other programs and start again; under Slurm, ask for more with --mem"),
    _cause("crashed", r"exit code: -(?:6|11)\b|Segmentation fault|\bSIGSEGV\b|ended with status 13[49]\b|Failed core proc\(s\): \{[^}]*: -(?:6|11)\b",
           "a process of vLLM crashed", "Start again; if it crashes again, try --enforce-eager, then another node"),
    # --- the other end is gone: mostly the echo of something above on another node
    _cause("rendezvous-timeout", r"DistStoreError|wait timeout after|client socket has timed out|[Tt]imed out after \d+ seconds waiting for clients|failed to connect to any network address|DistNetworkError",
           "the ranks did not find each other in time: one did not start, or is not reachable", "See that every node runs its rank and reaches the first one; " + NETWORK[0].lower() + NETWORK[1:], weak=True),
    _cause("nccl-network", r"ncclSystemError|NCCL error: unhandled system error|NCCL WARN.*(?:Connect to|[Cc]onnection refused|[Nn]o route)",
           "the GPUs of two nodes do not reach each other through NCCL", NETWORK),
    _cause("nccl-error", r"NCCL error(?!.*remote process exited)|ncclUnhandledCudaError|ncclInternalError",
           "NCCL, which moves data between GPUs, failed", "Start again with NCCL_DEBUG=INFO in the environment and read what stands above its error"),
    _cause("process-died", r"died unexpectedly \(exit code: (?!0\))|engine core exited unexpectedly",
           "a process of vLLM ended without a word, most likely killed because the machine ran out of memory", "Close other programs and start again; under Slurm, ask for more with --mem", weak=True),
    _cause("peer-lost", r"Connection (?:reset|closed) by (?:remote )?peer|Connection refused|remote process exited",
           "another process of the server ended, and this one with it", "Read the end of every rank's log for the one that ended first", weak=True),
    _cause("engine-died", r"Failed core proc\(s\): \{\}",
           "the engine ended while starting, most likely killed because the machine ran out of memory", "Close other programs and start again; under Slurm, ask for more with --mem", weak=True),
]
# fmt: on

#: Not a failure: what a log says beside it that a reader should know.
NOTES = [
    # Not "Using network Socket": GPUs of one node say so too, and then reach each other directly.
    (re.compile(r"NCCL INFO .*via NET/Socket"),
     "NCCL talks over TCP (NET/Socket) and not over InfiniBand (NET/IB), which is slow: set SITE_IB_HCA, and look for the verbs libraries"),
]  # fmt: skip

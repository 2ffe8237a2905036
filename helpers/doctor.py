"""Read a server's log and name the cause of its failure, with the mend."""

import re

#: pattern in the log -> what it means and what to do; the first match wins, so the root cause stands above its echo.
CAUSES = [
    (r"No space left on device", "the disk is full. Free some space (`df -h` shows where) and start again"),
    (r"Address already in use", "the port is taken. Start without naming a port, or name another"),
    (
        r"max seq len \((?P<length>[\d,]+)\).*?estimated maximum model length is (?P<fits>[\d,]+)",
        "{length} tokens do not fit in the KV cache. Start with --max-model-len {fits} or give the cache more memory",
    ),
    (
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than .*?=(?P<most>\d+)",
        "the model reads at most {most} tokens. Start with --max-model-len {most} instead of {asked}",
    ),
    (
        r"(Cannot allocate memory|MemoryError|std::bad_alloc|DefaultCPUAllocator: can't allocate)",
        "the machine ran out of memory. Close other programs, or lower VLLM_CPU_KVCACHE_SPACE (GiB of KV cache)",
    ),
    (
        r"(is not a local folder and is not a valid model identifier|Repo id must be|Can't load the configuration"
        r"|does not appear to have a file named|Invalid repository ID|Cannot find any model weights)",
        "the model was not found. Give a folder that holds config.json and the weights",
    ),
    (
        r"SafetensorError|JSONDecodeError",
        "a file of the model is damaged or cut short. Copy or download the model again",
    ),
    (
        r"Failed core proc\(s\): \{[^}]*: -9\b",
        "the engine was killed, most likely because the machine ran out of memory. Close other programs and start again",
    ),
    (r"unrecognized arguments: (?P<flags>.+)", "vLLM does not know {flags}. `vllm serve --help=all` lists its flags"),
]

#: Lines with an error's name that are not the cause.
ECHOES = r"Engine core initialization failed|See (?:root cause|stack trace)|\bWARNING\b"

SIGNALS = {
    -4: "the processor lacks an instruction that vLLM needs (AVX2). Use a newer machine",
    -9: "it was killed, most likely because the machine ran out of memory. Close other programs and start again",
}


def diagnose(log: str, returncode: int | None = None) -> str:
    """One sentence on why the server that wrote this log ended; an unknown cause is called unknown."""
    for pattern, meaning in CAUSES:
        if match := re.search(pattern, log, re.DOTALL if "max seq len" in pattern else 0):
            return meaning.format(**match.groupdict()) + "."
    if returncode in SIGNALS:
        return SIGNALS[returncode] + "."
    errors = re.findall(rf"^(?!.*(?:{ECHOES})).*?((?:\w+Error|\w*Exception): .+)$", log, re.MULTILINE)
    return f"vLLM said: {errors[-1].strip()}" if errors else "the cause is unknown: read the end of the log."

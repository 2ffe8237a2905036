"""Reading logs: texts that vLLM 0.32 and the system really print."""

import pytest

from helpers.doctor import diagnose


@pytest.mark.parametrize(
    ("log", "mend"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full. Free some space"),
        ("OSError: [Errno 98] Address already in use", "the port is taken"),
        (
            "ValueError: To serve at least one request with the models's max seq len (1048576), (4.00 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (1.0 GiB). Based on the available memory, the "
            "estimated maximum model length is 262144.",
            "1048576 tokens do not fit in the KV cache. Start with --max-model-len 262144",
        ),
        (
            "pydantic: Value error, User-specified max_model_len (9999) is greater than the derived max_model_len "
            "(max_position_embeddings=2048.0 or model_max_length=None in model's config.json).",
            "reads at most 2048 tokens. Start with --max-model-len 2048 instead of 9999",
        ),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "ran out of memory"),
        ("terminate called after throwing 'std::bad_alloc'", "ran out of memory"),
        ("OSError: /data is not a local folder and is not a valid model identifier listed on ...", "not found"),
        ("usage: vllm ...\nvllm: error: unrecognized arguments: --swap-space 4", "does not know --swap-space 4"),
        (
            "(Worker pid=1) ERROR [multiproc_executor.py:953] safetensors._safetensors_rust.SafetensorError: Error while "
            "deserializing header: incomplete metadata, file not fully covered",
            "a file of the model is damaged or cut short",
        ),
        ("json.decoder.JSONDecodeError: Expecting value: line 1 column 1", "a file of the model is damaged"),
        ("RuntimeError: Cannot find any model weights with `/data/x`", "holds config.json and the weights"),
        (
            "RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore': -9}",
            "engine was killed",
        ),
    ],
)
def test_known_causes_are_named_with_the_mend(log, mend):
    surrounded = f"INFO all is well\n{log}\nRuntimeError: Engine core initialization failed. See root cause above.\n"
    assert mend in diagnose(surrounded, 1)
    assert "\n" not in diagnose(surrounded, 1)


@pytest.mark.parametrize(("returncode", "mend"), [(-9, "it was killed"), (-4, "lacks an instruction")])
def test_a_log_that_says_nothing_leaves_the_exit_code(returncode, mend):
    assert mend in diagnose("INFO all is well\n", returncode)
    assert "disk is full" in diagnose("No space left on device\n", returncode), "the log knows better"


def test_an_unknown_error_is_quoted_and_an_unknown_cause_called_so():
    assert diagnose("x ValueError: first\ny KeyError: 'last'\nbye", 1) == "vLLM said: KeyError: 'last'"
    echo = "Exception: WorkerProc failed. See stack trace for root cause.\nRuntimeError: Engine core initialization failed."
    assert diagnose(f"(Worker) ERROR [x.py:9] ValueError: odd\n{echo} Failed core proc(s): {{}}", 1).endswith("odd")
    assert "the cause is unknown" in diagnose("", 1)


def test_a_healthy_log_that_talks_of_errors_names_no_known_cause():
    assert "unknown" in diagnose("INFO error_handler=None, enable_error_log=False\nINFO 0 errors\n", 0)
    assert "unknown" in diagnose("WARNING Found ulimit of 20000: `OSError: [Errno 24] Too many open files` may come", 1)

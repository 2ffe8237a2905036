"""A small server of several ranks on this machine, and what each of its ranks holds."""

from typing import Any

import pandas as pd
from openai import OpenAI

from helpers import connections, keeper, server
from helpers.client import client_for, root_of
from helpers.connections import READY
from helpers.server import Server
from helpers.tiny import MODEL_NAME


def start(*, tp: int = 1, pp: int = 1) -> Server:
    """The small Llama cut over tp x pp ranks, each on a core of its own where there are enough. `connect()` does not find it.

    Raises ServerError with the cause and the mend. A first start with stages takes longer, for their model is compiled:
    eager, vLLM 0.32 dies on a CPU at the first request.
    """
    flags = ["--tensor-parallel-size", str(tp), "--pipeline-parallel-size", str(pp)]
    flags += ["--worker-extension-cls", "helpers.rank_report.Report", *(["--no-enforce-eager"] if pp > 1 else [])]
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": keeper.a_core_each(tp * pp),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # the route that asks the ranks; the key guards it
    }
    return server.start(flags=flags, private=True, quiet=True, environment=environment)


def holdings(running: Server) -> pd.DataFrame:
    """What each rank of a server of `start` says that it holds: layers, two matrices of one layer, bytes of weights.

    The index is the name of the rank's process, matrices are (outputs x inputs). Another server refuses, with
    openai.APIError.
    """
    client = client_for(running.connection)
    said = client.post(f"{root_of(client)}/collective_rpc", cast_to=dict[str, Any], body={"method": "holds"})
    rows = {
        rank["name"]: {
            "layers": f"{rank['layers'][0]} to {rank['layers'][-1]}",
            "qkv": " x ".join(map(str, rank["matrices"]["qkv_proj"])),
            "o": " x ".join(map(str, rank["matrices"]["o_proj"])),
            "weight bytes": rank["weight_bytes"],
        }
        for rank in said["results"]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def uncut() -> OpenAI:
    """A client for a server that has the small Llama whole: the newest there is, else a new one that ends with this process."""
    for connection in connections.read_all():
        if connection.model == MODEL_NAME and connection.state == READY and not connection.is_gone():
            return client_for(connection)
    return client_for(server.start(private=True, quiet=True).connection)


def answer(to: OpenAI | Server, question: str, max_tokens: int = 40) -> str:
    """What the small Llama answers, always its most probable token."""
    client = to if isinstance(to, OpenAI) else client_for(to.connection)
    reply = client.chat.completions.create(
        model=MODEL_NAME, messages=[{"role": "user", "content": question}], max_tokens=max_tokens, temperature=0
    )
    return reply.choices[0].message.content or ""

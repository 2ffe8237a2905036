"""Tell vLLM's CPU backend how many ranks a node has: `vllm serve ... --worker-extension-cls helpers.cpu_ranks.LocalRanks`.

vLLM 0.32 takes ranks for neighbours on one node when rank // device_count is equal, and on CPUs its device_count is 1.
So a server on several nodes with several ranks each dies (`assert local_message_queue is not None`,
vllm/distributed/device_communicators/shm_broadcast.py). GPUs are counted right and need none of this.
"""

import os

from vllm.platforms import interface

interface.set_assigned_physical_gpu_ids(list(range(os.environ["VLLM_CPU_OMP_THREADS_BIND"].count("|") + 1)))


class LocalRanks:
    """Nothing to add to the worker: importing this module, which every rank then does, is the purpose."""

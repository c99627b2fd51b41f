"""`dosde train` in one of several processes on the CPU; sharded where accelerate is told to, which it does on GPUs only.

The processes are forked from a server that has imported what they need, once for all tests.
"""

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import accelerate  # noqa: F401
import diffusers  # noqa: F401
import torch
import torch.distributed as dist
import transformers  # noqa: F401
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from backbones.cli import main

SERVER = multiprocessing.get_context("forkserver")


def _started():
    """Starts the server, if it does not run; it finds modules by PYTHONPATH alone."""
    SERVER.set_forkserver_preload(["training_processes"])
    paths, before = os.pathsep.join(path for path in sys.path if path), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = paths
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def run(arguments, variables, log):
    """One process: the command with these environment variables, what it prints in a file, its status as exit status."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    torch.set_num_threads(1)
    sharded = "ACCELERATE_USE_FSDP" in os.environ
    if sharded:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    status = main(arguments)
    assert AcceleratorState().is_fsdp2 == sharded
    dist.destroy_process_group()
    sys.exit(status)


def two(arguments, folder, status=0, **variables):
    """The command in two processes with gloo, as accelerate launch starts them. Returns what they say."""
    _started()
    started = []
    for rank in "01":
        own = {**variables, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "RANK": rank, "LOCAL_RANK": rank}
        started.append(SERVER.Process(target=run, args=(arguments, own, str(Path(folder) / f"log{rank}"))))
        started[-1].start()
    for process in started:
        process.join(100)
    said = [(Path(folder) / f"log{rank}").read_text() for rank in "01"]
    for process in started:
        process.kill()  # if it hangs; the other has failed, or waits for it
        process.join()
    assert [process.exitcode for process in started] == [status, status], said
    return said

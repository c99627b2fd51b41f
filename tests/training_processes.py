"""`dosde train` in one of several processes on the CPU; sharded where accelerate is told to, which it does on GPUs only."""

import os
import sys

import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from backbones.cli import main

if __name__ == "__main__":
    sharded = "ACCELERATE_USE_FSDP" in os.environ
    if sharded:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    status = main(sys.argv[1:])
    assert AcceleratorState().is_fsdp2 == sharded
    dist.destroy_process_group()
    sys.exit(status)

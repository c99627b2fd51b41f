"""Run by several processes at once: `dosde train`, and the state of a sharded network (FSDP2), saved and restored."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from training_networks import Network

from backbones.training import loop
from dosde.cli import main


def made():
    torch.manual_seed(0)
    network = fully_shard(Network(dropout=0.0))
    return network, torch.optim.AdamW(network.parameters(), 1e-2), loop.Average(network, 0.9, True)


def trained(network, optimizer, average, steps):
    losses = []
    for k in steps:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        loss = (network(x, x, torch.zeros(2)) ** 2).mean()
        loss.backward()
        optimizer.step()
        average.update(k)
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    status = main(sys.argv[1:])
    run = made()
    trained(*run, range(3))
    state = [loop._state(*run)]  # of the first process; the others have nothing
    dist.broadcast_object_list(state)
    whole = {name: tuple(value.shape) for name, value in state[0].items() if name.startswith("ema.")}
    assert whole == {f"ema.{name}": tuple(value.shape) for name, value in Network().state_dict().items()}
    expected = trained(*run, range(3, 6))
    again = made()
    loop._restore(*again, state[0])
    assert trained(*again, range(3, 6)) == expected
    dist.barrier()
    dist.destroy_process_group()
    sys.exit(status)

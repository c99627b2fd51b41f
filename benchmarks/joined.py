"""The members of a network as one network, to train further: the mean of four of width 32 is one of width 128.

    python benchmarks/joined.py weights.safetensors joined.safetensors

What comes out answers as what went in, but for rounding: its weights have those of the members as blocks, and are 0 elsewhere.
Training fills them, so that it starts with all that the members have learnt and four times as many weights to learn more.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from backbones import embedded
from backbones.embedded.network import Member


def blocks(parts: list[Tensor]) -> Tensor:
    """Of (outputs, inputs, ...) each: each acts on inputs of its own."""
    outputs, inputs = (sum(part.shape[i] for part in parts) for i in (0, 1))
    whole = torch.zeros(outputs, inputs, *parts[0].shape[2:])
    y = x = 0
    for part in parts:
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part
        y, x = y + part.shape[0], x + part.shape[1]
    return whole


def tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter by its name, whole where it is tied."""
    place, _, key = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(place), key)
    return found


def joined(network: embedded.Network) -> embedded.Network:
    """One network of one member, of the same function."""
    config, members = network.config, list(network.members)
    count = len(members)
    made = embedded.Network(replace(config, width=count * config.width, embedding=count * config.embedding, members=1))
    whole = made.members[0]
    assert isinstance(whole, Member)

    with torch.no_grad():
        for name, layer in whole.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            weights, biases = ([tensor(member, f"{name}.{key}") for member in members] for key in ("weight", "bias"))
            if name in ("first", "time.0"):  # all see the same
                weight, bias = torch.cat(weights), torch.cat(biases)
            elif name == "last":  # and what they say is averaged
                weight, bias = torch.cat(weights, 1) / count, torch.stack(biases).mean(0)
            elif name.endswith("modulation"):  # (scale, shift) of each
                halves = [[one.chunk(2)[i] for one in weights] for i in (0, 1)]
                weight = torch.cat([blocks(half) for half in halves])
                bias = torch.cat([one.chunk(2)[i] for i in (0, 1) for one in biases])
            else:
                weight, bias = blocks(weights), torch.cat(biases)
            for key, value in (("weight", weight), ("bias", bias)):
                if parametrize.is_parametrized(layer, key):
                    setattr(layer, key, value)
                else:
                    getattr(layer, key).copy_(value)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    backbone = embedded.load(given.weights, device="cpu")
    network = joined(backbone.network).eval()
    generator = torch.Generator().manual_seed(0)
    x, x_hat0 = torch.randn(2, 1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        apart = max(float((network(x, x_hat0, t) - backbone.network(x, x_hat0, t)).abs().max()) for t in (0.01, 0.25, 0.5))
    print(f"{sum(p.numel() for p in network.parameters())} weights; it differs by at most {apart:.1e}")
    embedded.save(given.out, network, {**backbone.about, "joined": str(given.weights.name)})


if __name__ == "__main__":
    main()

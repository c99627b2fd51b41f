"""Weights that treat the eight positions of a picture alike: the group, layers one by one, the network and its file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from backbones.embedded import Config, Network, load, save, symmetry
from backbones.weights import metadata

MOVES = [symmetry.fixed(3), symmetry.folded(2, 4), symmetry.eights(16)]
MOVES.append(symmetry.joined(*MOVES))
CONFIGS = [
    Config(width=8, blocks=2, embedding=16),
    Config(width=16, blocks=1, fold=2, embedding=16),
    Config(width=24, blocks=4, embedding=16),
]


def random(config):
    torch.manual_seed(0)
    made = Network(config).double().eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def test_the_positions_are_a_group_and_all_different():
    picture = torch.arange(6).reshape(2, 3)
    every = [symmetry.positioned(picture, a) for a in range(8)]
    assert torch.equal(every[0], picture)
    assert len({(tuple(e.shape), tuple(e.flatten().tolist())) for e in every}) == 8
    for e in every:
        again = {tuple(symmetry.positioned(e, a).flatten().tolist()) for a in range(8)}
        assert again == {tuple(e.flatten().tolist()) for e in every}


@pytest.mark.parametrize("move", MOVES)
def test_channels_move_as_the_positions_compose(move):
    """a after b, of channels, is the position that a after b is, of pictures."""
    cell = torch.arange(4).reshape(2, 2)
    every = [symmetry.positioned(cell, a) for a in range(8)]
    for a in range(8):
        assert sorted(move[a].tolist()) == list(range(move.shape[1]))
        for b in range(8):
            both = next(c for c in range(8) if torch.equal(every[c], symmetry.positioned(every[b], a)))
            assert torch.equal(move[b][move[a]], move[both])


def test_folded_pixels_move_as_the_picture():
    picture = torch.randn(1, 3, 8, 12)
    move = symmetry.folded(3, 4)
    for a in range(8):
        moved = functional.pixel_unshuffle(symmetry.positioned(picture, a), 4)
        assert torch.equal(moved, symmetry.positioned(functional.pixel_unshuffle(picture, 4), a)[:, move[a]])


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("outputs", MOVES)
@pytest.mark.parametrize("inputs", MOVES)
def test_a_tied_layer_moves_its_output_as_its_input(kernel, stride, outputs, inputs):
    layer = nn.Conv2d(inputs.shape[1], outputs.shape[1], kernel, stride, padding=kernel // 2 if kernel % 2 else 0).double()
    symmetry.tie(layer, outputs, inputs)
    x = torch.randn(1, inputs.shape[1], 6, 8, dtype=torch.float64)
    whole = layer(x)
    assert whole.std() > 0.05
    for a in range(8):
        moved = layer(symmetry.positioned(x, a)[:, inputs[a]])
        assert torch.allclose(moved, symmetry.positioned(whole, a)[:, outputs[a]], atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_network_gives_the_same_in_all_positions(config):
    x, x_hat0 = torch.randn(2, 3, 16, 32, dtype=torch.float64), torch.rand(2, 3, 16, 32, dtype=torch.float64) * 2 - 1
    made = random(config)
    for a in range(1, 8):
        moved = [symmetry.positioned(p, a) for p in (x, x_hat0)]
        for t in (0.1, 0.5):
            whole = made(x, x_hat0, t)
            assert torch.allclose(made(*moved, t), symmetry.positioned(whole, a), atol=1e-12)
            assert moved[0].shape != whole.shape or not torch.allclose(made(*moved, t), whole, atol=1e-2)


def test_an_eighth_of_the_weights_is_free_and_all_of_them_learn():
    made = Network(Config(width=16, blocks=2, embedding=16))
    for layer in made.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and parametrize.is_parametrized(layer):
            free = layer.parametrizations.weight.original.numel()
            assert 8 * free == layer.weight.numel()
            assert layer.weight.ndim == 2 or layer.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        made(torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.tensor([0.1, 0.4])).square().mean().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad.ne(0).float().mean() > 0.9, name


def test_a_tied_layer_starts_as_the_layer_did():
    """Its weights have the std that torch gives them."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3)
    std = float(layer.weight.detach().std())
    symmetry.tie(layer, symmetry.eights(64), symmetry.eights(64))
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_least_of_numbers_is_nearly_all_of_them(config):
    """`Config.least`, which refuses files: without the biases, and the first layer of the time."""
    made = Network(config)
    counted = sum(p.numel() for name, p in made.named_parameters() if "bias" not in name and "time.0" not in name)
    assert config.least == counted


def test_its_file_holds_the_free_weights(tmp_path):
    made = random(CONFIGS[2]).float()
    save(tmp_path / "a.safetensors", made, {})
    held = load_file(tmp_path / "a.safetensors")
    assert sum(t.numel() for t in held.values()) == sum(p.numel() for p in made.parameters())
    back = load(tmp_path / "a.safetensors", device="cpu").network
    assert back.config == made.config
    x, x_hat0 = torch.randn(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    expected = made(x, x_hat0, 0.3)
    assert (back(x, x_hat0, 0.3) - expected).abs().max() < 0.01 * expected.std()  # half precision
    save(tmp_path / "b.safetensors", back, {})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_wrong_width():
    with pytest.raises(ValueError, match=r"width: 12; a multiple of 8 is needed"):
        Config(width=12)


def test_a_file_that_claims_too_much_is_refused_before_it_takes_memory(tmp_path):
    save(tmp_path / "a.safetensors", Network(CONFIGS[0]), {})
    said = json.loads(metadata(tmp_path / "a.safetensors")["dosde.embedded"])
    said["config"]["width"] = 8 * 10**5
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {"dosde.embedded": json.dumps(said)})
    with pytest.raises(ValueError, match=r"b\.safetensors: \d+ weights; \d{13} or more are needed for what"):
        load(tmp_path / "b.safetensors")

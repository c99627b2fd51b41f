"""Weights that treat the eight positions of a picture alike: the group, layers one by one, the network and its file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from backbones import files
from backbones.embedded import Config, Network, load, save, symmetry

MOVES = [symmetry.fixed(3), symmetry.folded(2, 4), symmetry.eights(16), symmetry.eights(8, 2)]
MOVES.append(symmetry.joined(*MOVES))
CONFIGS = [
    Config(widths=(8,), blocks=(2,), embedding=16, gain=True, symmetric=True),
    Config(widths=(16, 8), blocks=(1, 1), fold=2, embedding=16, symmetric=True),
    Config(widths=(8, 16, 24), blocks=(1, 2, 1), embedding=16, symmetric=True),
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
def test_a_symmetric_network_gives_the_same_in_all_positions_and_another_does_not(config):
    x, x_hat0 = torch.randn(2, 3, 16, 32, dtype=torch.float64), torch.rand(2, 3, 16, 32, dtype=torch.float64) * 2 - 1
    plain = random(Config(widths=config.widths, blocks=config.blocks, fold=config.fold, embedding=16))
    made = random(config)
    for a in range(1, 8):
        moved = [symmetry.positioned(p, a) for p in (x, x_hat0)]
        for t in (0.1, 0.5):
            whole = symmetry.positioned(made(x, x_hat0, t), a)
            assert torch.allclose(made(*moved, t), whole, atol=1e-12)
            assert not torch.allclose(plain(*moved, t), symmetry.positioned(plain(x, x_hat0, t), a), atol=1e-2)


def test_an_eighth_of_the_weights_is_free_and_all_of_them_learn():
    config = Config(widths=(16, 24), blocks=(1, 1), embedding=16)
    plain = Network(config)
    made = Network(Config(widths=(16, 24), blocks=(1, 1), embedding=16, symmetric=True))
    untied = ("time", "last.bias", "last.parametrizations.bias")  # the places of a cell, of the last bias, are not eight each
    whole, free = (sum(p.numel() for n, p in m.named_parameters() if not n.startswith(untied)) for m in (plain, made))
    assert 8 * free == whole
    for name in ("first", "last"):
        assert getattr(made, name).weight.shape == getattr(plain, name).weight.shape
        assert getattr(made, name).weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        made(torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.tensor([0.1, 0.4])).square().mean().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad.ne(0).float().mean() > 0.9, name


def test_it_starts_as_another_network_does():
    """F = 0; the weights of the first layer and of the blocks with the std that torch gives; doubling without a grid."""
    torch.manual_seed(0)
    plain, made = Network(Config()), Network(Config(symmetric=True))
    x, x_hat0 = torch.randn(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    assert torch.equal(made(x, x_hat0, 0.2), plain(x, x_hat0, 0.2))
    for get in (lambda m: m.first.weight, lambda m: m.middle[0].first.weight, lambda m: m.down[0][0].second.weight):
        assert float(get(made).detach().std()) == pytest.approx(float(get(plain).detach().std()), rel=0.05)
    doubled = made.finer[0].weight.reshape(-1, 4, made.config.widths[1])
    assert torch.equal(doubled, doubled[:, :1].expand_as(doubled))


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


def test_wrong_configurations():
    with pytest.raises(ValueError, match=r"widths: \(8, 12\); multiples of 8 are needed where symmetric"):
        Config(widths=(8, 12), blocks=(1, 1), symmetric=True)
    with pytest.raises(ValueError, match=r"symmetric: 1; true or false is needed"):
        Config(symmetric=1)


def test_a_file_that_claims_too_much_is_refused_before_it_takes_memory(tmp_path):
    save(tmp_path / "a.safetensors", Network(CONFIGS[0]), {})
    said = json.loads(files.metadata(tmp_path / "a.safetensors")["dosde.embedded"])
    said["config"]["widths"] = [8 * 10**5]
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {"dosde.embedded": json.dumps(said)})
    with pytest.raises(ValueError, match=r"b\.safetensors: \d+ weights; \d+ or more are needed"):
        load(tmp_path / "b.safetensors")


def test_a_file_of_before_it_is_not_symmetric():
    said = Config(widths=(8,), blocks=(1,)).to_json()
    del said["symmetric"]
    assert Config.from_json(said) == Config(widths=(8,), blocks=(1,))

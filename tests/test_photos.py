"""What the networks that ship are trained on, and where their training starts: benchmarks/photos.py and joined.py."""

import re
import struct
import zlib

import joined
import photos
import pytest
import torch

from backbones import embedded
from backbones.training.data import HELD_OUT


def test_the_list_names_a_licence_and_an_author_of_every_photograph():
    rows = photos.listed()
    assert len({row["file"] for row in rows}) == len({row["sha256"] for row in rows}) == len(rows) == 182
    held_out = {name.split(".")[0] for names in HELD_OUT.values() for name in names}
    for row in rows:
        assert row["package"] in photos.VERSIONS
        assert re.fullmatch(r"[0-9a-f]{64}", row["sha256"])
        assert row["author"]
        assert re.fullmatch(r"public domain|CC0-1\.0|CC-BY(-SA)?-[1-4]\.[05]", row["licence"])
        assert not any(name in row["file"] for name in held_out)


def _resource_file(files):
    """Version 1 of Qt's format: a folder `a` with these files."""
    names, data, nodes = b"", b"", [struct.pack(">IHII", 0, 2, 1, 1)]

    def named(text):
        nonlocal names
        at, names = len(names), names + struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    nodes.append(struct.pack(">IHII", named("a"), 2, len(files), 2))
    for i, (name, content) in enumerate(files.items()):
        raw = struct.pack(">I", len(content)) + zlib.compress(content) if i % 2 else content
        nodes.append(struct.pack(">IHHHI", named(name), i % 2, 0, 0, len(data)))
        data += struct.pack(">I", len(raw)) + raw
    tree = b"".join(nodes)
    return b"qres" + struct.pack(">4I", 1, 20, 20 + len(tree), 20 + len(tree) + len(data)) + tree + data + names


def test_a_resource_file_is_read(tmp_path):
    files = {"one.webp": b"abc", "two.webp": b"defghi" * 9}
    (tmp_path / "x.rcc").write_bytes(_resource_file(files))
    assert photos.resources(tmp_path / "x.rcc") == {f"a/{name}": content for name, content in files.items()}
    (tmp_path / "y.rcc").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no Qt resource file"):
        photos.resources(tmp_path / "y.rcc")


def test_tiles_cover_a_picture_but_for_none():
    picture = torch.rand(3, 400, 593)
    made = photos.tiles(picture)
    assert len(made) == 6
    assert sum(tile[0].numel() for tile in made) == picture[0].numel()
    assert min(min(tile.shape[1:]) for tile in made) >= photos.SIDE
    assert photos.tiles(picture[:, :191]) == []
    assert photos.detail(torch.full((3, 192, 192), 0.5)) < 1e-6 < photos.detail(made[0])


def test_members_that_are_joined_answer_as_their_mean():
    torch.manual_seed(0)
    network = embedded.Network(embedded.Config(width=8, blocks=2, members=3, embedding=16)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
        one = joined.joined(network).eval()
        assert (len(one.members), one.config.width) == (1, 24)
        x, x_hat0 = torch.randn(2, 2, 3, 16, 24)
        t = torch.tensor([0.1, 0.5])
        torch.testing.assert_close(one(x, x_hat0, t), network(x, x_hat0, t), rtol=1e-4, atol=1e-5)

import pytest
import torch

pytest.importorskip("diffusers")

from backbones.sd21 import malloc


@malloc.kept()
def nested(fails):
    with malloc.kept():
        torch.zeros(1 << 24).add_(1)
    assert malloc._inside == 1
    return 1 / (not fails)


def test_kept_nests_and_ends_with_an_error():
    assert nested(False) == 1
    with pytest.raises(ZeroDivisionError):
        nested(True)
    assert malloc._inside == 0


def test_nothing_happens_without_glibc(monkeypatch):
    monkeypatch.setattr(malloc, "_glibc", lambda: None)
    with malloc.kept():
        malloc.trim()
    assert malloc._inside == 0

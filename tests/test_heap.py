import pytest
import torch

pytest.importorskip("diffusers")

from backbones.sd21 import heap


@heap.kept()
def nested(fails):
    with heap.kept():
        torch.zeros(1 << 24).add_(1)
    assert heap._inside == 1
    return 1 / (not fails)


def test_kept_nests_and_ends_with_an_error():
    assert nested(False) == 1
    with pytest.raises(ZeroDivisionError):
        nested(True)
    assert heap._inside == 0


def test_nothing_happens_without_glibc(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with heap.kept():
        heap.trim()
    assert heap._inside == 0

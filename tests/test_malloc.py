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


def test_usual_is_a_pause_and_nothing_outside(monkeypatch):
    set_to = []

    class Library:
        def mallopt(self, name, value):
            set_to.append(value)

        def malloc_trim(self, pad):
            pass

    monkeypatch.setattr(malloc, "_glibc", Library)
    with malloc.usual():
        assert set_to == []
    kept, usual = list(malloc._KEPT.values()), list(malloc._USUAL.values())
    with malloc.kept():
        with malloc.usual():
            assert set_to == kept + usual
        assert set_to == kept + usual + kept
    assert set_to == kept + usual + kept + usual


def test_nothing_happens_without_glibc(monkeypatch):
    monkeypatch.setattr(malloc, "_glibc", lambda: None)
    with malloc.kept():
        malloc.trim()
    assert malloc._inside == 0

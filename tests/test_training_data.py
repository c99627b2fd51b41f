"""Data sets: the same pictures for the same (seed, epoch, index) everywhere, bad files named, the held-out ones left out."""

import itertools
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from backbones.pictures import degradation, procedural
from backbones.pictures import io as images
from backbones.pictures.degradation import BICUBIC, REAL_ESRGAN
from backbones.training import data
from backbones.training.data import Bundled, Folder, Mixed, Order, Procedural, Samples

CROP = 32


def save(path, mode="RGB", size=(48, 40), seed=0):
    """A picture of this mode; in grey and colour, values that differ everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(PIL.Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    PIL.Image.fromarray(values[..., 0] if channels == 1 else values, mode=None).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    save(root / "a.png")
    save(root / "deep" / "er" / "b.JPG", seed=1)
    save(root / "grey.png", "L", seed=2)
    save(root / "alpha.png", "RGBA", seed=3)
    (root / "notes.txt").write_text("no picture")
    return root


def everything(samples, keys):
    return [{name: picture.clone() for name, picture in samples[key].items()} for key in keys]


def same(a, b):
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def sources(folder):
    return [Folder(folder, CROP), Bundled(CROP), Procedural(CROP, 5), Mixed([(Folder(folder, CROP), 1), (Procedural(CROP), 3)])]


# What comes out.


@pytest.mark.parametrize("index", range(4))
def test_samples_are_pairs_of_the_right_shapes(folder, index):
    source = sources(folder)[index]
    for parameters, names in ((None, ["hr"]), (BICUBIC, ["hr", "lr"]), (REAL_ESRGAN, ["hr", "lr"])):
        samples = Samples(source, parameters, seed=3)
        for i in range(min(4, len(samples))):
            sample = samples[i]
            assert list(sample) == names
            for name, picture in sample.items():
                n = CROP if name == "hr" else CROP // 4
                assert picture.shape == (3, n, n)
                assert picture.dtype == torch.float32
                assert 0 <= float(picture.min()) <= float(picture.max()) <= 1


def test_lr_is_the_degraded_hr(folder):
    sample = Samples(Folder(folder, CROP), BICUBIC)[1]
    assert torch.equal(sample["lr"], degradation.degrade(sample["hr"], 4, 0, BICUBIC))


def test_crops_are_parts_of_the_picture_in_all_eight_positions(tmp_path):
    path = save(tmp_path / "one" / "a.png", size=(CROP + 2, CROP + 1))
    whole, source = images.read(path).colour[0], Folder(tmp_path / "one", CROP)
    possible = {}
    for y, x, turns, mirror in itertools.product(range(2), range(3), range(4), (False, True)):
        square = torch.rot90(whole[:, y : y + CROP, x : x + CROP], turns, (1, 2))
        possible[(square.flip(2) if mirror else square).numpy().tobytes()] = y, x, turns, mirror
    found = [possible[source.picture(0, np.random.default_rng(n)).numpy().tobytes()] for n in range(600)]
    assert len(possible) == len(set(found)) == 48


def test_grey_becomes_colour_and_alpha_is_dropped(tmp_path):
    for mode in ("L", "RGBA"):
        path = save(tmp_path / mode / "a.png", mode, (CROP, CROP))
        colour = images.read(path).colour[0].expand(3, -1, -1)
        crop = Folder(path.parent, CROP).picture(0, np.random.default_rng(0))
        assert sorted(crop.flatten(1).T.tolist()) == sorted(colour.flatten(1).T.tolist())


def test_a_picture_is_as_large_as_the_crop_at_least(tmp_path):
    save(tmp_path / "exact.png", size=(CROP, CROP))
    assert Folder(tmp_path, CROP).picture(0, np.random.default_rng(0)).shape == (3, CROP, CROP)


def test_shrunken_crops_show_more_of_the_picture(tmp_path):
    """A ramp keeps its slope but for the factor, which spreads evenly in its logarithm and is bounded by what fits."""
    ramp = np.broadcast_to(np.linspace(0, 255, 160).round().astype(np.uint8)[None, :, None], (100, 160, 3))
    PIL.Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    for source, most in ((Folder(tmp_path, CROP, shrink=2.5), 2.5), (Folder(tmp_path, CROP, shrink=8.0), 100 / CROP)):
        factors = []
        for n in range(300):
            crop = source.picture(0, np.random.default_rng(n))
            assert crop.shape == (3, CROP, CROP)
            slope = max(float((crop[0, 8:-8, 8:-8].diff(dim=d).mean()).abs()) for d in (0, 1))
            factors.append(slope * 159)
        assert min(factors) == pytest.approx(1, abs=0.06)
        assert max(factors) == pytest.approx(most, rel=0.05)
        if most == 2.5:
            assert np.mean(np.log(factors)) == pytest.approx(np.log(2.5) / 2, abs=0.05)


# Reproducible.


@pytest.mark.parametrize("index", range(4))
def test_keys_alone_decide(folder, index):
    source = sources(folder)[index]
    keys = [(epoch, i) for epoch in range(2) for i in range(4)]
    once = everything(Samples(source, REAL_ESRGAN, seed=5), keys)
    torch.manual_seed(7)
    again = everything(Samples(source, REAL_ESRGAN, seed=5), reversed(keys))
    assert same(once, again[::-1])
    assert same(once[:4], everything(Samples(source, REAL_ESRGAN, seed=5), range(4)))
    other = everything(Samples(source, REAL_ESRGAN, seed=6), keys)
    for a, b in [*zip(once, other, strict=True), *zip(once[:4], once[4:], strict=True)]:
        assert not torch.equal(a["lr"], b["lr"])


def test_workers_do_not_matter(folder):
    mixed = Mixed([(Folder(folder, CROP), 1), (Bundled(CROP), 1), (Procedural(CROP), 1)])
    samples, order = Samples(mixed, REAL_ESRGAN), Order(len(mixed), start=3, stop=15)
    torch.set_num_threads(2)  # a worker has one
    try:
        alone, *others = (list(DataLoader(samples, batch_size=4, sampler=order, num_workers=n)) for n in (0, 2))
    finally:
        torch.set_num_threads(1)
    assert len(alone) == 3
    for batches in others:
        assert same(alone, batches)


CODE = """
import sys, backbones
heavy = [name for name in ("cv2", "PIL", "skimage", "scipy", "backbones.training") if name in sys.modules]
import hashlib
from backbones.training.data import Bundled, Mixed, Procedural, Samples
from backbones.pictures.degradation import REAL_ESRGAN
samples = Samples(Mixed([(Bundled(64), 1), (Procedural(64), 2)]), REAL_ESRGAN, seed=2)
bits = b"".join(p.numpy().tobytes() for i in range(12) for p in samples[1, i].values())
print(hashlib.sha256(bits).hexdigest(), heavy)
"""


def test_another_process_draws_the_same_and_import_backbones_is_light(capsys):
    exec(CODE, {})
    here = capsys.readouterr().out.split()[0]
    root = Path(__file__).parents[1]
    there = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    assert there == f"{here} []"


def test_an_order_resumes_where_it_stopped():
    whole = list(Order(7, seed=1, stop=30))
    assert len(whole) == len(Order(7, seed=1, stop=30)) == 30
    for start in (0, 3, 7, 20, 29, 30):
        assert list(Order(7, seed=1, start=start, stop=30)) == whole[start:]
    for epoch in range(4):
        assert sorted(whole[7 * epoch : 7 * epoch + 7]) == [(epoch, i) for i in range(7)]
    assert whole[:7] != [(0, i) for _, i in whole[7:14]]
    assert list(itertools.islice(Order(7, seed=1), 30)) == whole
    assert list(Order(7, seed=2, stop=30)) != whole


def test_mixed_draws_by_its_weights():
    class Flat:
        crop = 1

        def __init__(self, value):
            self.value = value

        def __len__(self):
            return 3

        def picture(self, index, generator):
            return torch.full((3, 1, 1), self.value)

    n = 2000
    mixed = Mixed([(Flat(0.0), 1), (Flat(1.0), 3)], length=n)
    share = float(torch.stack([Samples(mixed)[i]["hr"][0, 0, 0] for i in range(n)]).mean())
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / n) ** 0.5
    assert len(mixed) == n
    assert len(Mixed([(Flat(0.0), 1), (Flat(1.0), 3)])) == 6


# Bad files.


def test_a_broken_picture_is_named_once_and_replaced(folder):
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = Folder(folder, CROP)  # its header is whole
    index = [p.name for p in source.paths].index("cut.png")
    with pytest.warns(UserWarning, match=r"cut.png: cannot be read and is left out \(.*\)") as caught:
        first = everything(Samples(source), [index])
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(first, everything(Samples(source), [index]))
    with pytest.warns(UserWarning, match=r"cut.png"):
        assert same(first, everything(Samples(Folder(folder, CROP)), [index]))


def test_a_file_that_is_no_picture_is_named_at_the_start(folder):
    (folder / "text.png").write_text("no picture")
    with pytest.warns(UserWarning, match=r"text.png: cannot be read and is left out") as caught:
        source = Folder(folder, CROP)
    assert len(caught) == 1
    assert len(source) == 4


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_nothing_but_broken_pictures_is_an_error(tmp_path):
    whole = save(tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:500])
    (tmp_path / "b.png").write_bytes(whole[:400])
    with pytest.raises(ValueError, match="none of 2 pictures can be read"):
        Samples(Folder(tmp_path, CROP))[0]
    for name in "ab":
        (tmp_path / f"{name}.png").write_text("")
    with pytest.raises(ValueError, match="none of 2 pictures can be read"):
        Folder(tmp_path, CROP)


def test_small_pictures_are_refused_or_counted(folder):
    save(folder / "small.png", size=(CROP - 1, 90))
    with pytest.raises(ValueError, match=rf"1 of 5 pictures are smaller than the crop {CROP}: small.png \(31x90\)"):
        Folder(folder, CROP)
    source = Folder(folder, CROP, small="skip")
    assert source.skipped == 1
    assert len(source) == 4
    with pytest.raises(ValueError, match="as large as the crop 500"):
        Folder(folder, 500, small="skip")
    with pytest.raises(ValueError, match="small: 'maybe'"):
        Folder(folder, CROP, small="maybe")


def test_empty_and_absent_folders_are_errors(tmp_path):
    with pytest.raises(ValueError, match="it holds no pictures"):
        Folder(tmp_path, CROP)
    with pytest.raises(ValueError, match="there is no such folder"):
        Folder(tmp_path / "absent", CROP)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="crop: 30; a multiple of the scale 4"):
        Samples(Procedural(30), BICUBIC)
    with pytest.raises(ValueError, match="one crop"):
        Mixed([(Procedural(32), 1), (Procedural(64), 1)])
    for parts in ([], [(Procedural(32), 0)], [(Procedural(32), float("nan"))]):
        with pytest.raises(ValueError, match="positive weights"):
            Mixed(parts)
    with pytest.raises(ValueError, match="crop: 0"):
        Procedural(0)
    with pytest.raises(ValueError, match="crop: 5000"):
        Bundled(5000)
    for shrink in (0.9, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"shrink: .*; a number of at least 1"):
            Bundled(32, shrink=shrink)
    with pytest.raises(IndexError, match="index: 5 of 5"):
        Samples(Procedural(32, 5))[5]


# What is bundled, and what is held out.


def test_the_held_out_pictures_are_never_trained_on(tmp_path, monkeypatch):
    """With scikit-learn's two pictures too, whether it is installed or not."""
    folder = tmp_path / "sklearn" / "datasets" / "images"
    save(folder / "china.jpg", size=(200, 200))
    save(folder / "flower.jpg", size=(200, 200), seed=1)
    (tmp_path / "sklearn" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    held, names = data.held_out(), Bundled(CROP).names
    assert sorted(held) == ["chelsea", "china", "coffee"]
    assert "flower" in names
    assert not set(held) & set(names)
    assert not {n for files in data.HELD_OUT.values() for n in files} & {n for files in data.TRAINED.values() for n in files}
    for picture in held.values():
        assert picture.shape[0] == 3
        assert 0 <= float(picture.min()) < float(picture.max()) <= 1


def test_bundled_has_the_ones_that_are_named():
    assert set(Bundled(64, names=["coins", "rocket"]).names) == {"coins", "rocket"}
    with pytest.raises(ValueError, match=r"names: 'chelsea'; one of astronaut, .*flower$"):
        Bundled(64, names=["chelsea"])
    with pytest.raises(ValueError, match="crop: 400"):
        Bundled(400, names=["coins"])


def test_bundled_has_all_that_are_large_enough():
    assert len(Bundled(128).names) >= 15
    assert set(Bundled(384).names) < set(Bundled(128).names)
    assert len(Bundled(128, repeat=10)) == 10 * len(Bundled(128).names)


# Procedural pictures.


@pytest.mark.parametrize("kind", procedural.KINDS)
@pytest.mark.parametrize("size", [1, 2, 15, 64, 129])
def test_procedural_pictures_are_functions_of_their_seed(kind, size):
    make = procedural.KINDS[kind][1]
    for seed in range(8):
        picture = make(size, np.random.default_rng(seed))
        assert picture.shape == (3, size, size)
        assert picture.dtype == torch.float32
        assert picture.isfinite().all()
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
        assert torch.equal(picture, make(size, np.random.default_rng(seed)))
        assert size < 15 or not torch.equal(picture, make(size, np.random.default_rng(seed + 100)))


def slope(pictures):
    """Of log power over log frequency, of the mean spectrum, from a sixteenth of Nyquist to half of it."""
    grey = torch.stack([images.luma(p[None])[0, 0] for p in pictures]).double()
    window = torch.hann_window(grey.shape[-1], dtype=torch.float64)
    grey = (grey - grey.mean((1, 2), keepdim=True)) * window * window[:, None]
    power = torch.fft.fft2(grey).abs().square().mean(0)
    along = torch.fft.fftfreq(grey.shape[-1], dtype=torch.float64)
    f = torch.hypot(along, along[:, None])
    inside = (f > 1 / 32) & (f < 1 / 4)
    return float(np.polyfit(f[inside].log(), power[inside].log(), 1)[0])


def test_spectra_fall_as_those_of_photographs_do():
    """About f^-2: photographs' exponents go from 1.5 to 3 or so."""
    generator = np.random.default_rng(0)
    assert -3.2 < slope([procedural.leaves(128, generator) for _ in range(24)]) < -1.5
    field = procedural._field
    one = [torch.from_numpy(field(128, np.random.default_rng(n), 1)).expand(3, -1, -1) for n in range(24)]
    assert -3.2 < slope(one) < -1.5


def test_dead_leaves_have_edges_as_photographs_do():
    """Gradients with heavy tails: a Gaussian field has a kurtosis of 3."""
    generator = np.random.default_rng(0)
    kurtosis = []
    for _ in range(12):
        grey = images.luma(procedural.leaves(128, generator)[None])[0, 0].double()
        along = grey.diff(dim=1).flatten()
        kurtosis.append(float(along.pow(4).mean() / along.square().mean() ** 2))
    assert min(kurtosis) > 4
    assert float(np.median(kurtosis)) > 6


def test_all_kinds_come_up():
    assert sum(weight for weight, _ in procedural.KINDS.values()) == pytest.approx(1)
    pictures = [procedural.picture(24, np.random.default_rng(n)) for n in range(30)]
    made = {name: {make(24, _after(n)).numpy().tobytes() for n in range(30)} for name, (_, make) in procedural.KINDS.items()}
    found = [name for p in pictures for name in made if p.numpy().tobytes() in made[name]]
    assert len(found) == 30
    assert set(found) == set(procedural.KINDS)


def _after(seed):
    """A generator that has made the choice of a kind."""
    generator = np.random.default_rng(seed)
    generator.choice(len(procedural.KINDS), p=[weight for weight, _ in procedural.KINDS.values()])
    return generator

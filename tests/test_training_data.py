"""Data sets: the same pictures for the same (seed, epoch, index) everywhere, bad files named, the held-out ones left out."""

import dataclasses
import itertools
import pickle
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
from backbones.training.data import Bundled, Folder, Mixed, Order, Pairs, Procedural, Samples
from backbones.training.stop import undisturbed
from backbones.training.stream import Stream

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


@pytest.mark.parametrize("index", range(6))
def test_workers_that_are_spawned_get_everything(folder, tmp_path, index):
    """The start method of macOS and Windows: whatever the workers need is pickled."""
    pair(tmp_path / "HR" / "a.png", tmp_path / "LR" / "a.png")
    parts = [*sources(folder), Pairs(tmp_path / "HR", tmp_path / "LR", CROP, 4), Procedural(CROP)]
    samples = Samples(parts[index], data.Own("training_networks:coarse", 4) if index == 5 else REAL_ESRGAN)
    again = pickle.loads(pickle.dumps(Stream(samples, 0, ((3, CROP, CROP),))))
    assert same(everything(again, [(1, 0, 7)]), everything(Stream(samples, 0, ((3, CROP, CROP),)), [(1, 0, 7)]))


def test_a_batch_of_a_worker_that_is_spawned(folder, tmp_path):
    pair(tmp_path / "HR" / "a.png", tmp_path / "LR" / "a.png")
    parts = [Folder(folder, CROP), Bundled(CROP, names=["coins"]), Pairs(tmp_path / "HR", tmp_path / "LR", CROP, 4)]
    samples = Stream(Samples(Mixed([(part, 1) for part in parts]), data.Own("training_networks:coarse", 4)), 0, ((1,),))
    how = {"num_workers": 1, "multiprocessing_context": "spawn", "worker_init_fn": undisturbed}
    keys = [[(0, 0, 0), (0, 1, 1), (0, 2, 2)]]
    assert same(DataLoader(samples, batch_sampler=keys, **how), DataLoader(samples, batch_sampler=keys))


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


# Pairs, and a degradation of a user's.


def pair(hr, lr, size=(12, 10), scale=4, seed=0):
    """Two files: hr is lr, each pixel four by four times."""
    low = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for path, values in ((hr, low.repeat(scale, 0).repeat(scale, 1)), (lr, low)):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(values).save(path)


def test_pairs_are_cropped_mirrored_and_turned_alike(tmp_path):
    for n in range(2):
        pair(tmp_path / "HR" / f"{n}.png", tmp_path / "LR" / f"{n}.png", seed=n)
    source = Pairs(tmp_path / "HR", tmp_path / "LR", CROP, 4)
    samples = Samples(Mixed([(source, 1)], 8), REAL_ESRGAN)  # which is for sources without lr
    found = set()
    for n in range(200):
        sample = samples[n // 8, n % 8]
        assert sample["lr"].shape == (3, CROP // 4, CROP // 4)
        assert torch.equal(sample["hr"], sample["lr"].repeat_interleave(4, 1).repeat_interleave(4, 2))
        found.add(sample["lr"].numpy().tobytes())
    assert len(found) > 100  # of 2 x 15 x 8 crops
    assert same(everything(samples, [(3, 5)]), everything(Samples(Mixed([(source, 1)], 8), None), [(3, 5)]))


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("HR/a.png", "LR/a.png"),
        ("HR/deep/a.png", "LR/deep/a.jpg"),
        ("HR/0001.png", "LR/0001x4.png"),
        ("HR/a_HR.png", "LR/a_LR4.png"),
        ("GT/a_GT.png", "LQ/a_LQ.png"),
        ("HR/img_001_SRF_4_HR.png", "LR/img_001_SRF_4_LR.png"),
        ("both/Canon_001_HR.png", "both/Canon_001_LR4.png"),
        ("both/a.png", "both/ax4.png"),
    ],
)
def test_pairs_are_found_by_the_names_that_data_sets_have(tmp_path, hr, lr):
    pair(tmp_path / hr, tmp_path / lr)
    folders = [tmp_path / name.split("/")[0] for name in (hr, lr)]
    if "4" in Path(lr).stem[-2:] and hr[:4] != "both":
        pair(tmp_path / hr, (tmp_path / lr).with_name(Path(lr).name.replace("4.png", "2.png")), size=(24, 20), scale=2)
        pair(tmp_path / hr, tmp_path / lr)  # one of another scale beside it
    assert data.matched(*folders, 4) == [(tmp_path / hr, tmp_path / lr)]


def test_pairs_that_are_none_are_named(tmp_path):
    hr, lr = tmp_path / "HR", tmp_path / "LR"
    pair(hr / "a.png", lr / "a.png")
    pair(hr / "b.png", lr / "c.png")
    with pytest.raises(ValueError, match=r"^hr: 1 of 2 pictures of .*HR have no partner: b\.png; a file of the same name"):
        Pairs(hr, lr, CROP, 4)
    (hr / "b.png").unlink()
    with pytest.raises(ValueError, match=r"^lr: 1 of 2 pictures of .*LR have no partner: c\.png"):
        Pairs(hr, lr, CROP, 4)
    (lr / "c.png").rename(lr / "a_LR4.png")
    with pytest.raises(ValueError, match=r"^hr: 1 of 1 pictures of .*HR have several partners: a\.png"):
        Pairs(hr, lr, CROP, 4)
    (lr / "a_LR4.png").unlink()
    with pytest.raises(ValueError, match=r"^hr: .*a\.png has 48x40 pixels; 2 times the size of its low resolution .* 24x20"):
        Pairs(hr, lr, CROP, 2)
    with pytest.raises(ValueError, match=r"^hr: 1 of 1 pictures are smaller than the crop 44: a\.png; larger pictures, or"):
        Pairs(hr, lr, 44, 4)
    with pytest.raises(ValueError, match="as large as the crop 44"):
        Pairs(hr, lr, 44, 4, "skip")
    with pytest.raises(ValueError, match="crop: 30; a multiple of the scale 4"):
        Pairs(hr, lr, 30, 4)
    for pairs in ((tmp_path / "none", lr), (hr, tmp_path / "none")):
        with pytest.raises(ValueError, match="none; there is no such folder"):
            Pairs(*pairs, CROP, 4)


def test_a_pair_that_cannot_be_read_is_named_once_and_replaced(tmp_path):
    for n in range(2):
        pair(tmp_path / "HR" / f"{n}.png", tmp_path / "LR" / f"{n}.png", seed=n)
    source = Pairs(tmp_path / "HR", tmp_path / "LR", CROP, 4)
    whole = (tmp_path / "LR" / "0.png").read_bytes()
    (tmp_path / "LR" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"0\.png: cannot be read and is left out"):
        first = everything(Samples(source), [0])
    assert same(first, everything(Samples(source), [0]))
    pair(tmp_path / "x.png", tmp_path / "LR" / "1.png", size=(9, 10))
    with (
        pytest.warns(UserWarning, match=r"1\.png: cannot be read .*48x40 and 9x10"),
        pytest.raises(ValueError, match="none of 2"),
    ):
        everything(Samples(source), [0])


def changing(hr, generator):
    return hr.zero_()[:, ::4, ::4]


def failing(hr, generator):
    raise OSError("no\nluck")


MILD = dataclasses.replace(BICUBIC, scale=2)
WRONG = {
    "shape": lambda hr, generator: hr,
    "type": lambda hr, generator: hr.numpy(),
    "bytes": lambda hr, generator: (255 * hr[:, ::4, ::4]).byte(),
    "range": lambda hr, generator: 255 * hr[:, ::4, ::4],
    "nan": lambda hr, generator: hr[:, ::4, ::4] * float("nan"),
}
globals().update({f"wrong_{name}": function for name, function in WRONG.items()})


def test_a_degradation_of_ones_own(tmp_path):
    own = data.Own("training_networks:coarse", 4)
    samples = Samples(Procedural(CROP), own, seed=2)
    hr, lr = samples[1, 3]["hr"], samples[1, 3]["lr"]
    assert torch.equal(lr, samples[1, 3]["lr"])
    assert torch.equal(hr, Samples(Procedural(CROP), BICUBIC, seed=2)[1, 3]["hr"])
    noise = (lr - hr[:, ::4, ::4])[(lr > 0) & (lr < 1)]
    assert float(noise.std()) == pytest.approx(0.1, rel=0.2)
    assert not torch.equal(lr, samples[2, 3]["lr"])
    assert float(Samples(Procedural(CROP), data.Own("test_training_data:changing", 4))[0]["hr"].max()) > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("failing", r"test_training_data:failing: OSError: no luck \(test_training_data\.py, line \d+\); it fails"),
        ("wrong_shape", r"returned a float32 tensor of shape \(3, 32, 32\).*; a floating tensor of shape \(3, 8, 8\)"),
        ("wrong_type", "returned a ndarray; a floating tensor of shape"),
        ("wrong_bytes", "returned a uint8 tensor"),
        ("wrong_range", r"returned values from \d.* to \d.*; finite values from 0 to 1 are needed"),
        ("wrong_nan", "returned values from nan to nan"),
    ],
)
def test_a_degradation_of_ones_own_that_fails_is_named(name, said):
    with pytest.raises(ValueError, match=rf"^data\.degradation: [^\n]*{said}"):
        Samples(Procedural(CROP), data.Own(f"test_training_data:{name}", 4))[0]


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

import gc
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a run in the background, whose Ctrl-C tests would wait for nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, which run side by side too

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("instances")  # which asserts in `wrong_calls`
settings.register_profile("dosde", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dosde")
torch.set_num_threads(1)  # tests run side by side

LONG = (
    "training_sd21",
    "sd21_pipeline",
    "training",
    "cli",
    "orders",
    "reference",
    "sd21_cli",
    "resshift_pipeline",
    "few_steps",
    "embedded",
    "solve",
    "step",
)
# A file runs in one worker: what its tests share, such as exact solutions and a server of processes, is made once.


def pytest_collection_modifyitems(items):
    """Files of long tests first, so that no worker is left alone with one of them in the end."""
    order = {f"test_{name}": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


gc.disable()  # while a million objects of libraries are made, none of which is garbage


def pytest_collection_finish():
    """What has been imported stays: no collection of garbage is to go through it again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def sd21_folder(tmp_path_factory):
    """The recorded model, converted; its checkpoint lies beside it, model.safetensors. Not to be changed."""
    import golden_sd21
    from safetensors.torch import save_file

    from backbones.cli import main

    place = tmp_path_factory.mktemp("sd21")
    save_file({name: torch.from_numpy(array) for name, array in golden_sd21.state_dict().items()}, place / "model.safetensors")
    assert main(["convert", str(place / "model.safetensors"), "-o", str(place / "folder")]) == 0
    return place / "folder"


@pytest.fixture(scope="session")
def resshift_folder(tmp_path_factory):
    """The recorded ResShift networks (4 steps), converted; their released files lie beside the folder. Not to be changed."""
    import golden_resshift

    from backbones.cli import main

    place = tmp_path_factory.mktemp("resshift")
    files = [place / "resshift_realsrx4_s4_v3.pth", place / "autoencoder_vq_f4.pth"]
    for path, network in zip(files, ("unet", "vq"), strict=True):
        tensors = {f"module._orig_mod.{name}": tensor for name, tensor in golden_resshift.state_dict(network).items()}
        torch.save({"state_dict": tensors}, path)
    assert main(["convert", *map(str, files), "-o", str(place / "folder")]) == 0
    return place / "folder"


@pytest.fixture(autouse=True)
def _same_start_for_every_test():
    torch.manual_seed(0)

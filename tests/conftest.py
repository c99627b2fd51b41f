import pytest
import torch
from hypothesis import settings

settings.register_profile("dosde", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dosde")
torch.set_num_threads(1)  # tests run side by side


@pytest.fixture(autouse=True)
def _same_start_for_every_test():
    torch.manual_seed(0)

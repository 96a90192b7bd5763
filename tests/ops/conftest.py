import os

import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    """The best kernels are tested with two threads, the lesser ones (``test_kernels.py``) with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "PWLU_DET_CPU_KERNELS" in os.environ else 2)
    yield
    torch.set_num_threads(before)

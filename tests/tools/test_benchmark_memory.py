"""What the benchmark reports as memory."""

import torch
from torch import nn

from pwlu_det.benchmark.measure import Clock, peak_memory, saved_memory


def test_peak_memory_counts_only_the_run():
    mib = 2**18  # float32
    held = [torch.empty(8 * mib)]

    def run(clock):
        held.clear()  # memory from before the run does not count
        a = torch.empty(mib)
        b = torch.empty(2 * mib)
        del a
        held.extend([torch.empty(3 * mib), b])
        return {}

    assert [peak_memory(run, Clock("cpu")) for _ in range(2)] == [5 * 2**20] * 2


def test_saved_memory_counts_each_storage_once_and_no_parameters():
    linear = nn.Linear(1024, 256)  # 1 MiB, and 1 KiB for the bias
    x = torch.ones(256, 1024, requires_grad=True)  # 1 MiB

    def run(clock):
        for _ in range(2):
            y = linear(x)  # saves x
            y = y.relu()  # saves its result, 0.25 MiB
            y = y * y[:1]  # saves it again
            y.sum().backward()
        return {}

    assert saved_memory(run, Clock("cpu"), linear) == 1.25 * 2**20

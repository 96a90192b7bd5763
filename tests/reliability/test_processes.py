"""Training with several processes on CPUs (gloo), as launched by the training command."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from kill_and_resume import ROOT, differences
from processes import end, free_port, members, start, trainers, wait_for_exit, wait_for_metrics, wait_until

CONFIG = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
ITERATIONS = 12
SMALL = [
    *("DATASETS.TEST", "()", "SOLVER.MAX_ITER", ITERATIONS, "MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 4),
    *("SOLVER.CHECKPOINT_PERIOD", 100, "MODEL.FPN.OUT_CHANNELS", 32),
]


def launch(script, folder, *options, processes=1, machines=1, rank=0, url="auto"):
    """Start a script that takes the training command's arguments; its output goes to a file in the folder."""
    folder.mkdir(exist_ok=True)
    command = [
        *(sys.executable, ROOT / script, "--config-file", CONFIG, "--num-gpus", processes),
        *("--num-machines", machines, "--machine-rank", rank, "--dist-url", url),
        *(*SMALL, "OUTPUT_DIR", folder, *options),
    ]
    return start(command, folder / f"output_{rank}.txt")


def output(folder):
    return (folder / "output_0.txt").read_text(errors="replace")


def run(script, folder, **options):
    assert wait_for_exit(launch(script, folder, **options)) == 0, output(folder)[-4000:]


AVERAGED = "tests/helpers/train_averaged.py"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("one")
    run(AVERAGED, folder)
    return folder


def load_state(folder, rank, iteration):
    return torch.load(folder / f"rank{rank}_{iteration}.pth", weights_only=True)


def check_ranks(folder, number, one_process):
    """Every rank has the same parameters after each iteration, and they are those of one process."""
    for iteration in range(ITERATIONS):
        many = load_state(folder, 0, iteration)
        for rank in range(1, number):
            assert differences(many, load_state(folder, rank, iteration)) == []
        one = load_state(one_process, 0, iteration)
        assert one.keys() == many.keys()
        for key, value in one.items():
            near = torch.allclose(many[key], value, rtol=1e-4, atol=1e-5)
            assert near, f"{key} after iteration {iteration}: {many[key]} instead of {value}"


@pytest.mark.parametrize("number", [2, 4])
def test_processes_match_one_process_with_the_global_batch(tmp_path, one_process, number):
    run(AVERAGED, tmp_path, processes=number)
    check_ranks(tmp_path, number, one_process)


def test_two_machines_match_one_process(tmp_path, one_process):
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [launch(AVERAGED, tmp_path, machines=2, rank=rank, url=url) for rank in (1, 0)]
    for machine in machines:
        assert wait_for_exit(machine) == 0, output(tmp_path)[-4000:]
    check_ranks(tmp_path, 2, one_process)


LONG = ("SOLVER.MAX_ITER", 100000)
TEARDOWN = 60  # seconds of CPU time: enough to exit, but not to continue training


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_lost_machine_ends_the_others_with_an_error(tmp_path, sent):
    """A stopped process is like a machine that has lost power: nothing closes its connections."""
    url = f"tcp://127.0.0.1:{free_port()}"
    folders = tmp_path / "0", tmp_path / "1"
    machines = [
        launch("tools/train_net.py", folder, *LONG, machines=2, rank=rank, url=url)
        for rank, folder in enumerate(folders)
    ]
    try:
        wait_for_metrics(folders[0], machines[0])
        for trainer in trainers(machines[1]):
            os.kill(trainer, sent)
        assert wait_for_exit(machines[0], cpu_limit=TEARDOWN) != 0
        if sent == signal.SIGSTOP:
            assert "process 1 has not responded for 40 s" in output(folders[0])
        else:
            assert wait_for_exit(machines[1], cpu_limit=TEARDOWN) != 0
    finally:
        end(*machines)


def test_killed_process_ends_the_run_with_an_error(tmp_path):
    process = launch("tools/train_net.py", tmp_path, *LONG, processes=2)
    try:
        wait_for_metrics(tmp_path, process)
        os.kill(trainers(process)[1], signal.SIGKILL)
        assert wait_for_exit(process, cpu_limit=TEARDOWN) == 128 + signal.SIGKILL
        wait_until(lambda: not members(process))
        assert "train_net.py: error: process 1 was killed by SIGKILL" in output(tmp_path)
    finally:
        end(process)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_data_loader_worker_that_is_killed_ends_the_run_with_one_error(tmp_path, processes):
    process = launch(
        "tools/train_net.py", tmp_path, *LONG, "DATALOADER.NUM_WORKERS", processes, processes=processes
    )
    try:
        wait_for_metrics(tmp_path, process)
        trainer = trainers(process)[0] if processes > 1 else process.pid
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(trainer)], capture_output=True, text=True)
        worker = int(listed.stdout.split()[0])
        os.kill(worker, signal.SIGKILL)
        assert wait_for_exit(process, cpu_limit=TEARDOWN) == 1
        (error,) = (line for line in output(tmp_path).splitlines() if "train_net.py: error: " in line)
        assert "error: a data loader worker was lost (" in error
    finally:
        end(process)

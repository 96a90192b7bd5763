"""Several processes on CPUs, as the training command launches them (gloo)."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kill_and_resume import ROOT, differences

CONFIG = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
SMALL = [
    *("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 26, "MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 4),
    *("SOLVER.CHECKPOINT_PERIOD", 100, "MODEL.FPN.OUT_CHANNELS", 64),
]


def free_url() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def launch(script, folder, *options, processes=1, machines=1, rank=0, url="auto"):
    """Start a script that takes the training command's arguments; its output goes to a file in the folder."""
    folder.mkdir(exist_ok=True)
    command = [
        *(sys.executable, ROOT / script, "--config-file", CONFIG, "--num-gpus", processes),
        *("--num-machines", machines, "--machine-rank", rank, "--dist-url", url),
        *(*SMALL, "OUTPUT_DIR", folder, *options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / f"output_{rank}.txt", "wb") as log:
        return subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def run(*arguments, **options):
    process = launch(*arguments, **options)
    assert process.wait(timeout=400) == 0, (arguments[1] / "output_0.txt").read_text()[-4000:]


AVERAGED = "tests/helpers/train_averaged.py"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(AVERAGED, folder)
    return torch.load(folder / "rank0.pth", weights_only=True)


def check_ranks(folder, number, one_process):
    """Every rank has the same parameters after each iteration, and they are those of one process."""
    ranks = [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(number)]
    assert len(ranks[0]) == 26
    for other in ranks[1:]:
        assert differences(ranks[0], other) == []
    for iteration, (one, many) in enumerate(zip(one_process, ranks[0])):
        assert one.keys() == many.keys()
        for key, value in one.items():
            near = torch.allclose(many[key], value, rtol=1e-4, atol=1e-5)
            assert near, f"{key} after iteration {iteration}: {many[key]} in place of {value}"


@pytest.mark.parametrize("number", [2, 4])
def test_processes_train_as_one_with_the_global_batch(tmp_path, one_process, number):
    run(AVERAGED, tmp_path, processes=number)
    check_ranks(tmp_path, number, one_process)


def test_two_machines_train_as_one_process(tmp_path, one_process):
    url = free_url()
    machines = [launch(AVERAGED, tmp_path, machines=2, rank=rank, url=url) for rank in (1, 0)]
    for machine in machines:
        assert machine.wait(timeout=400) == 0, (tmp_path / "output_0.txt").read_text()[-4000:]
    check_ranks(tmp_path, 2, one_process)


def wait_for(path: Path, text: str, seconds: float = 200) -> None:
    end = time.time() + seconds
    while text not in (path.read_text(errors="replace") if path.exists() else ""):
        assert time.time() < end, f"no {text!r} in {path}"
        time.sleep(0.2)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_a_machine_that_is_lost_ends_the_others_with_an_error(tmp_path, sent):
    """Silent is what a machine without power is: nothing closes its connections."""
    url = free_url()
    folders = tmp_path / "0", tmp_path / "1"
    machines = [
        launch("tools/train_net.py", folder, "SOLVER.MAX_ITER", 100000, machines=2, rank=rank, url=url)
        for rank, folder in enumerate(folders)
    ]
    try:
        wait_for(folders[0] / "metrics.json", "total_loss")
        for child in children(machines[1].pid):
            os.kill(child, sent)
        begin = time.time()
        assert machines[0].wait(timeout=60) != 0
        assert time.time() - begin < 60
        if sent == signal.SIGSTOP:
            assert "process 1 has not responded for 40 s" in (folders[0] / "output_0.txt").read_text()
        else:
            assert machines[1].wait(timeout=60) != 0
    finally:
        for machine in machines:
            for child in children(machine.pid):
                os.kill(child, signal.SIGKILL)
            machine.kill()
            machine.wait()


def children(pid: int) -> list[int]:
    """The processes that a command has spawned to train, without those that serve it."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line]


def test_a_process_that_is_killed_ends_the_run_with_an_error(tmp_path):
    process = launch("tools/train_net.py", tmp_path, "SOLVER.MAX_ITER", 100000, processes=2)
    try:
        wait_for(tmp_path / "metrics.json", "total_loss")
        os.kill(children(process.pid)[1], signal.SIGKILL)
        assert process.wait(timeout=60) != 0
        assert not children(process.pid)
    finally:
        process.kill()

"""Real runs that torchrun or SLURM's variables start, and runs that SIGTERM ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_and_resume import ROOT, differences, load_final
from small_runs import SMALL

CONFIG = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
TOOL = str(ROOT / "tools/train_net.py")
TWO = ("--num-gpus", "2")


def command(folder, *arguments, options=(), python=(sys.executable,)):
    parts = [*python, TOOL, "--config-file", CONFIG, *arguments, *SMALL, *options, "OUTPUT_DIR", folder]
    return list(map(str, parts))


def start(line, folder, **variables):
    log = open(f"{folder}.log", "a")  # noqa: SIM115 the process keeps it
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def wait(process, folder, code=0):
    status = process.wait(timeout=600)
    assert status == code, Path(f"{folder}.log").read_text()[-3000:]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The final checkpoint of two processes, as --num-gpus starts them."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    wait(start(command(folder, *TWO), folder), folder)
    return load_final(folder)


def test_torchrun_trains_as_num_gpus_does(tmp_path, expected):
    folder = tmp_path / "run"
    python = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    python += ("--master-port", free_port())
    wait(start(command(folder, python=python), folder), folder)
    assert differences(expected, load_final(folder)) == []


def test_slurm_s_tasks_train_as_num_gpus_does(tmp_path, expected):
    folder, port = tmp_path / "run", str(free_port())
    variables = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_ID": "1"}
    variables |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}
    tasks = [
        start(command(folder), f"{folder}{i}", **variables, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in range(2)
    ]
    for i, task in enumerate(tasks):
        wait(task, f"{folder}{i}")
    assert differences(expected, load_final(folder)) == []


def test_torchrun_beside_num_gpus_is_refused(tmp_path):
    variables = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    variables |= {"LOCAL_WORLD_SIZE": "2"}
    wait(start(command(tmp_path / "run", *TWO), tmp_path / "run", **variables), tmp_path / "run", code=2)
    assert "torchrun has started 2 processes, and --num-gpus" in Path(f"{tmp_path / 'run'}.log").read_text()
    assert not (tmp_path / "run").exists()


LONG = ("SOLVER.MAX_ITER", 40, "SOLVER.CHECKPOINT_PERIOD", 1000, "DATALOADER.NUM_WORKERS", 1)


@pytest.mark.parametrize("whole_group", [False, True], ids=["the process", "its whole group"])
@pytest.mark.parametrize("processes", [(), TWO], ids=["1 process", "2 processes"])
def test_sigterm_saves_and_ends_and_the_run_resumes_exactly(tmp_path, processes, whole_group):
    whole = tmp_path / "whole"
    wait(start(command(whole, *processes, options=LONG), whole), whole)

    folder = tmp_path / "stopped"
    process = start(command(folder, *processes, options=LONG), folder)
    metrics = folder / "metrics.json"  # written every 20 iterations
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, Path(f"{folder}.log").read_text()[-3000:]
        time.sleep(0.05)
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    wait(process, folder, code=143)
    last = (folder / "last_checkpoint").read_text()
    assert last.startswith("model_00000") and (folder / last).exists()
    assert "Received SIGTERM: writing model_00000" in (folder / "log.txt").read_text()

    wait(start(command(folder, *processes, "--resume", options=LONG), folder), folder)
    assert differences(load_final(whole), load_final(folder)) == []

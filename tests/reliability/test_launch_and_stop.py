"""Real runs that are started by torchrun or by SLURM's variables, or stopped by SIGTERM."""

import functools
import os
import signal
import sys

import pytest
from kill_and_resume import ROOT, differences, load_final
from processes import free_port, start, trainers, wait_for_exit, wait_for_metrics
from small_runs import SMALL

CONFIG = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
TOOL = str(ROOT / "tools/train_net.py")
TWO = ("--num-gpus", "2")


def launch(folder, *arguments, options=(), python=(sys.executable,), **variables):
    """Start a run with OUTPUT_DIR ``folder``; its output goes to a file next to the folder."""
    command = [*python, TOOL, "--config-file", CONFIG, *arguments, *SMALL, *options, "OUTPUT_DIR", folder]
    return start(command, log_of(folder), **variables)


def log_of(folder):
    return folder.with_suffix(".txt")


def run(folder, *arguments, code=0, **rest):
    assert wait_for_exit(launch(folder, *arguments, **rest)) == code, log_of(folder).read_text()[-3000:]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The final checkpoint of two processes, as --num-gpus starts them."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    run(folder, *TWO)
    return load_final(folder)


def test_torchrun_matches_num_gpus(tmp_path, expected):
    folder = tmp_path / "run"
    python = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    python += ("--master-port", free_port())
    run(folder, python=python)
    assert differences(expected, load_final(folder)) == []


def test_slurm_matches_num_gpus(tmp_path, expected):
    folder, port = tmp_path / "run", str(free_port())
    variables = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_ID": "1"}
    variables |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}
    tasks = [launch(folder, **variables, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
    for task in tasks:
        assert wait_for_exit(task) == 0, log_of(folder).read_text()[-3000:]
    assert differences(expected, load_final(folder)) == []


def test_torchrun_with_num_gpus_is_refused(tmp_path):
    variables = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    variables |= {"LOCAL_WORLD_SIZE": "2"}
    folder = tmp_path / "run"
    run(folder, *TWO, code=2, **variables)
    assert "torchrun has started 2 processes, but --num-gpus" in log_of(folder).read_text()
    assert not folder.exists()


LONG = ("SOLVER.MAX_ITER", 40, "SOLVER.CHECKPOINT_PERIOD", 1000, "DATALOADER.NUM_WORKERS", 1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A function that returns the final checkpoint of a long run, by the arguments of its launch."""

    @functools.cache
    def final(*processes):
        folder = tmp_path_factory.mktemp("whole") / "run"
        run(folder, *processes, options=LONG)
        return load_final(folder)

    return final


SENT_TO = {
    "the command": lambda command: command.terminate(),
    "the whole group": lambda command: os.killpg(command.pid, signal.SIGTERM),
    "the second process": lambda command: os.kill(trainers(command)[1], signal.SIGTERM),
}


@pytest.mark.parametrize(
    "processes, sent_to", [((), "the command"), ((), "the whole group"), *((TWO, name) for name in SENT_TO)]
)
def test_run_stopped_by_sigterm_resumes_exactly(tmp_path, uninterrupted, processes, sent_to):
    folder = tmp_path / "stopped"
    process = launch(folder, *processes, options=LONG)
    wait_for_metrics(folder, process)
    SENT_TO[sent_to](process)
    assert wait_for_exit(process) == 143, log_of(folder).read_text()[-3000:]
    last = (folder / "last_checkpoint").read_text()
    assert last.startswith("model_00000") and (folder / last).exists()
    assert "Received SIGTERM: writing model_00000" in (folder / "log.txt").read_text()

    run(folder, *processes, "--resume", options=LONG)
    assert differences(uninterrupted(*processes), load_final(folder)) == []

"""The environment variables of torchrun and SLURM; tests/reliability has real runs of both."""

from argparse import Namespace

import pytest

from pwlu_det import ConfigError
from pwlu_det.engine.launch import Environment, find_environment, num_processes

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "1234567",
}


def test_torchrun():
    assert find_environment(TORCHRUN) == Environment(5, 8, 1, 4, "env://")


@pytest.mark.parametrize(
    "nodes, host",
    [
        ("gpu[03-04]", "gpu03"),
        ("gpu[7,9-12],login", "gpu7"),
        ("a,b", "a"),
        ("host-1", "host-1"),
        ("n[001-100].cluster", "n001"),
    ],
)
def test_slurm(nodes, host):
    environment = find_environment({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert environment == Environment(5, 8, 1, 4, f"tcp://{host}:{20000 + 1234567 % 20000}")


def test_slurm_with_a_given_address():
    environment = find_environment({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "99"})
    assert environment.url == "tcp://10.0.0.1:99"


@pytest.mark.parametrize(
    "variables", [{}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}]
)
def test_no_launcher(variables):
    """sbatch without srun also sets SLURM_NTASKS and SLURM_PROCID, but starts a single process."""
    assert find_environment(variables) is None


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM], ids=["torchrun", "SLURM"])
def test_error_names_missing_and_invalid_variables(variables):
    for name in variables:
        if name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
            continue
        with pytest.raises(ConfigError, match=f"torchrun or SLURM is incomplete .*{name}"):
            find_environment({k: v for k, v in variables.items() if k != name})
        if name != "SLURM_STEP_NODELIST":
            with pytest.raises(ConfigError, match="torchrun or SLURM is incomplete"):
                find_environment({**variables, name: "many"})


def arguments(num_gpus=1, num_machines=1):
    return Namespace(num_gpus=num_gpus, num_machines=num_machines)


def test_number_of_processes(monkeypatch):
    assert num_processes(arguments(2, 3)) == 6
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert num_processes(arguments()) == 8
    assert num_processes(arguments(2, 3)) == 6  # one task per machine, which starts its own processes
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert num_processes(arguments()) == 8
    with pytest.raises(ConfigError, match=r"torchrun has started 8 processes, but --num-gpus .* ask for 2"):
        num_processes(arguments(2))

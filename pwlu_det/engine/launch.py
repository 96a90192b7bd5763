"""Starting the processes of a run, with detectron2's launcher, torchrun or SLURM's srun."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.engine import launch as launch_processes
from detectron2.utils import comm

from pwlu_det.errors import ConfigError


class Environment(NamedTuple):
    """This process's rank among the processes started by a launcher."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    url: str
    """The ``init_method`` of ``init_process_group``."""


def find_environment(variables: Mapping[str, str] = os.environ) -> Environment | None:
    """Read the environment variables of torchrun or SLURM's srun; None if neither started this process.

    Raises:
        ConfigError: some variables are missing, or are not numbers.
    """
    try:
        if "TORCHELASTIC_RUN_ID" in variables:
            names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
            return Environment(*(int(variables[name]) for name in names), "env://")
        if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun, but not by sbatch alone
            host = variables.get("MASTER_ADDR") or _first_host(variables["SLURM_STEP_NODELIST"])
            port = variables.get("MASTER_PORT") or 20000 + int(variables["SLURM_JOB_ID"]) % 20000
            names = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"
            # For example "2(x3),1": two tasks on each of three machines, and one on the fourth.
            per_node = re.match(r"\d+", variables["SLURM_STEP_TASKS_PER_NODE"])[0]
            return Environment(
                *(int(variables[name]) for name in names), int(per_node), f"tcp://{host}:{port}"
            )
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the environment of torchrun or SLURM is incomplete ({error}); start the run with torchrun, "
            "srun, or --num-gpus, --num-machines, --machine-rank and --dist-url"
        ) from error
    return None


def _first_host(nodes: str) -> str:
    """The first host in a SLURM node list such as "gpu[03-07,09],login"."""
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return first[1] + (first[2] or "")


def num_processes(args) -> int:
    """The number of processes of a run, from its environment or from detectron2's arguments.

    Raises:
        ConfigError: both torchrun and the arguments specify several processes.
    """
    environment = find_environment()
    asked = args.num_gpus * args.num_machines
    if environment is None or asked > 1:
        if environment is not None and "TORCHELASTIC_RUN_ID" in os.environ:
            raise ConfigError(
                f"torchrun has started {environment.world_size} processes, but --num-gpus and "
                f"--num-machines ask for {asked}; omit these two, or start the run without torchrun"
            )
        return asked
    return environment.world_size


def launch(main: Callable[..., Any], args, main_args: tuple) -> None:
    """Call ``main(*main_args)`` in each process of the run, within a process group.

    Args:
        main: the function to call.
        args: detectron2's arguments. If they ask for one process and torchrun or SLURM's srun started this
            process, it joins the others. Otherwise the processes are started here, and a SIGTERM to this
            process is passed on to them.
        main_args: arguments of ``main``.
    """
    environment = find_environment()
    if environment is not None and args.num_gpus * args.num_machines == 1:
        _join(environment)
        main(*main_args)
        return
    previous = signal.getsignal(signal.SIGTERM)
    if args.num_gpus * args.num_machines > 1:
        signal.signal(signal.SIGTERM, lambda *_: [p.terminate() for p in multiprocessing.active_children()])
    try:
        launch_processes(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=main_args,
        )
    finally:
        signal.signal(signal.SIGTERM, previous)


def _join(environment: Environment) -> None:
    gpus = torch.cuda.is_available()
    dist.init_process_group(
        "NCCL" if gpus else "GLOO",
        init_method=environment.url,
        rank=environment.rank,
        world_size=environment.world_size,
    )
    comm.create_local_process_group(environment.local_world_size)
    if gpus:
        torch.cuda.set_device(environment.local_rank)
    comm.synchronize()

"""Kills training runs at chosen instants, resumes them, and compares their end with an uninterrupted run's.

    python tests/helpers/kill_and_resume.py --kills 40 --output output/kills

Runs are of ``tools/train_net.py`` on the digits: 60 iterations, the switch to phase II at 20, a checkpoint
every 5. An eighth of the kills hit a checkpoint while it is written, an eighth the iterations to either side
of the switch, the others any instant from the start of the process on. Every tensor and number of the final
checkpoints must be the same, bit for bit: model, optimiser, scheduler, statistics, phase.
"""

from __future__ import annotations

import argparse
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
REPORT = "KILL_AND_RESUME_REPORT"  # names the file descriptor that iterations are reported to
AT_ANY_TIME, AT_WRITE, AT_SWITCH = "at any time", "while a checkpoint is written", "around the switch"


@dataclass
class Schedule:
    """Of the runs, in iterations."""

    length: int = 60
    switch: int = 20
    period: int = 5

    def options(self, folder: Path) -> list[str]:
        return [
            *("OUTPUT_DIR", str(folder), "DATASETS.TEST", "()", "SOLVER.MAX_ITER", str(self.length)),
            *("SOLVER.CHECKPOINT_PERIOD", str(self.period), "SOLVER.IMS_PER_BATCH", "2"),
            *("MODEL.ACTIVATION.PWLU.PHASE1_ITERS", str(self.switch)),
        ]


class Run:
    """One process of the training command."""

    def __init__(self, schedule: Schedule, folder: Path, *arguments: str):
        folder.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        command = [
            sys.executable,
            __file__,
            "--config-file",
            str(CONFIG),
            *arguments,
            *schedule.options(folder),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", REPORT: str(write)}
        with open(folder / "output.txt", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, pass_fds=(write,), stdout=log, stderr=subprocess.STDOUT
            )
        os.close(write)
        self.folder, self._report = folder, os.fdopen(read, "rb")

    def iterations(self) -> Iterator[int]:
        """Those that begin, until the process ends."""
        yield from map(int, self._report)

    def finish(self) -> None:
        for _ in self.iterations():
            pass
        if self.process.wait() != 0:
            raise AssertionError((self.folder / "output.txt").read_text()[-4000:])

    def kill(self) -> bool:
        """Whether the process still ran."""
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL


def kill_at_any_time(run: Run, schedule: Schedule, seconds: float, chance: random.Random) -> bool:
    time.sleep(chance.uniform(0, seconds))
    return run.kill()


def kill_at_write(run: Run, schedule: Schedule, seconds: float, chance: random.Random) -> bool:
    """At one of the writes, some time after its beginning; true if it was not yet done."""
    which = chance.randrange(schedule.period - 1, schedule.length, schedule.period)
    next(iteration for iteration in run.iterations() if iteration == which)
    temporary = run.folder / f"model_{which:07d}.pth.tmp"
    while not temporary.exists():
        if run.process.poll() is not None:
            return False
        time.sleep(0.0002)
    time.sleep(chance.uniform(0, 0.05))
    run.kill()
    return temporary.exists()


def kill_at_switch(run: Run, schedule: Schedule, seconds: float, chance: random.Random) -> bool:
    """Within the last iteration of phase I, or the first of phase II."""
    which = schedule.switch - chance.randrange(2)
    next(iteration for iteration in run.iterations() if iteration == which)
    time.sleep(chance.uniform(0, 0.1))  # an iteration takes about that
    return run.kill()


KILLS = {AT_ANY_TIME: kill_at_any_time, AT_WRITE: kill_at_write, AT_SWITCH: kill_at_switch}


def kill_and_resume(kind: str, seed: int, schedule: Schedule, folder: Path, seconds: float) -> dict:
    """Kill a run as ``kind`` says, resume it to its end, and give its final checkpoint."""
    chance = random.Random(seed)
    hit = False
    while not hit:  # a run may have ended before, or a checkpoint have been written already
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.time()
        hit = KILLS[kind](Run(schedule, folder), schedule, seconds, chance)
        seconds = min(seconds, time.time() - begin)
    Run(schedule, folder, "--resume").finish()
    return load_final(folder)


def load_final(folder: Path) -> dict:
    final = torch.load(folder / "model_final.pth", weights_only=True)
    del final["trainer"]["hooks"]["ExactResume"]["config"]  # which names the folder
    return final


def differences(a, b, name: str = "") -> list[str]:
    """Names of what is not the same in two nested checkpoints."""
    if type(a) is not type(b):
        return [name]
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) and a.dtype == b.dtype else [name]
    if isinstance(a, dict):
        own = [] if a.keys() == b.keys() else [f"keys of {name}"]
        return own + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, (list, tuple)):
        own = [] if len(a) == len(b) else [f"length of {name}"]
        return own + [d for i, pair in enumerate(zip(a, b)) for d in differences(*pair, f"{name}[{i}]")]
    return [] if a == b else [name]


def check(
    kinds: list[str], schedule: Schedule, output: Path, parallel: int = 1
) -> list[tuple[str, list[str]]]:
    """For each kill its kind, and what differs from the uninterrupted run."""
    begin = time.time()
    Run(schedule, output / "uninterrupted").finish()
    seconds = time.time() - begin
    expected = load_final(output / "uninterrupted")

    def one(number: int) -> tuple[str, list[str]]:
        folder, kind = output / f"kill_{number}", kinds[number]
        found = differences(expected, kill_and_resume(kind, number, schedule, folder, seconds))
        print(f"kill {number}, {kind}: {'the same' if not found else found[:5]}", flush=True)
        if not found:
            shutil.rmtree(folder)
        return kind, found

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(one, range(len(kinds))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("output/kills"))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    eighth = -(-args.kills // 8)
    kinds = [AT_WRITE] * eighth + [AT_SWITCH] * eighth
    kinds += [AT_ANY_TIME] * (args.kills - len(kinds))
    results = check(kinds, Schedule(), args.output, args.parallel)
    killed = Counter(kind for kind, _ in results)
    same = Counter(kind for kind, found in results if not found)
    for kind in killed:
        print(f"{kind}: {same[kind]} of {killed[kind]} resumed runs end the same, bit for bit")
    sys.exit(sum(same.values()) < len(results))


def train_and_report() -> None:
    """The training command, which also reports each iteration that it begins."""
    from detectron2.engine import HookBase

    from pwlu_det.engine.trainer import Trainer

    class Report(HookBase):
        def before_step(self):
            os.write(int(os.environ[REPORT]), b"%d\n" % self.trainer.iter)

    build_hooks = Trainer.build_hooks
    Trainer.build_hooks = lambda trainer: [*build_hooks(trainer), Report()]
    runpy.run_path(str(ROOT / "tools/train_net.py"), run_name="__main__")


if __name__ == "__main__":
    train_and_report() if REPORT in os.environ else main()

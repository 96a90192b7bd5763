"""Kill training runs at chosen times, resume them, and compare the results with an uninterrupted run.

    python tests/helpers/kill_and_resume.py --kills 40 --output output/kills

A run is ``tools/train_net.py`` on the digits: 60 iterations, the switch to phase II at iteration 20, a
checkpoint every 5 iterations. One eighth of the kills are of each of these kinds, and the rest happen at any
time since the start of the process:

- while a checkpoint is written, or while the final one is;
- in the iteration before or after the switch;
- at any time, and last_checkpoint is deleted before the run is resumed;
- at any time after a second run was started in the same folder, which must end with an error.

Every tensor and number in the final checkpoints must be identical, bit for bit: model, optimizer, scheduler,
statistics, phase.
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
REPORT = "KILL_AND_RESUME_REPORT"  # environment variable with the file descriptor for reports
AT_ANY_TIME, AT_WRITE, AT_SWITCH = "at any time", "while a checkpoint is written", "around the switch"
AT_FINAL, UNTAGGED = "while the final checkpoint is written", "and last_checkpoint is deleted"
SECOND_RUN = "after a second run in the same folder"
NUM_KILLS = int(os.environ.get("PWLU_DET_KILLS", 8))


@dataclass
class Schedule:
    """Schedule of a run, in iterations."""

    length: int = 60
    switch: int = 20
    period: int = 5

    def options(self, folder: Path) -> list[str]:
        return [
            *("OUTPUT_DIR", str(folder), "DATASETS.TEST", "()", "SOLVER.MAX_ITER", str(self.length)),
            *("SOLVER.CHECKPOINT_PERIOD", str(self.period), "SOLVER.IMS_PER_BATCH", "2"),
            *("MODEL.ACTIVATION.PWLU.PHASE1_ITERS", str(self.switch), "MODEL.FPN.OUT_CHANNELS", "16"),
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
        """Yield each iteration as it begins, until the process ends."""
        yield from map(int, self._report)

    def wait_for(self, iteration: int) -> None:
        """Wait for the start of an iteration."""
        next(i for i in self.iterations() if i == iteration)

    def finish(self, status: int = 0) -> str:
        """Wait for the end, check the exit status, and return what was printed by the runs in this folder."""
        for _ in self.iterations():
            pass
        output = (self.folder / "output.txt").read_text()
        if self.process.wait() != status:
            raise AssertionError(output[-4000:])
        return output

    def kill(self) -> bool:
        """Kill the process, and return whether it was still running."""
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL


def kill_at_any_time(run: Run, schedule: Schedule, seconds: float, rng: random.Random) -> bool:
    time.sleep(rng.uniform(0, seconds))
    return run.kill()


def kill_at_write(run: Run, schedule: Schedule, seconds: float, rng: random.Random) -> bool:
    """Kill at a random time after a checkpoint write has begun; return whether it was unfinished."""
    which = rng.randrange(schedule.period - 1, schedule.length, schedule.period)
    run.wait_for(which)
    return _kill_while_writing(run, f"model_{which:07d}.pth", rng)


def kill_at_final(run: Run, schedule: Schedule, seconds: float, rng: random.Random) -> bool:
    run.wait_for(schedule.length - 1)
    return _kill_while_writing(run, "model_final.pth", rng)


def _kill_while_writing(run: Run, name: str, rng: random.Random) -> bool:
    temporary: list[Path] = []
    while not temporary:
        if run.process.poll() is not None:
            return False
        time.sleep(0.0002)
        temporary = list(run.folder.glob(f"{name}.*.tmp"))
    time.sleep(rng.uniform(0, 0.05))
    run.kill()
    return temporary[0].exists()


def kill_at_switch(run: Run, schedule: Schedule, seconds: float, rng: random.Random) -> bool:
    """Kill in the last iteration of phase I or the first of phase II."""
    which = schedule.switch - rng.randrange(2)
    run.wait_for(which)
    time.sleep(rng.uniform(0, 0.1))  # about the duration of an iteration
    return run.kill()


def kill_and_delete_tag(run: Run, schedule: Schedule, seconds: float, rng: random.Random) -> bool:
    run.wait_for(rng.randrange(schedule.period, schedule.length))
    killed = run.kill()
    (run.folder / "last_checkpoint").unlink()
    return killed


def kill_after_second_run(run: Run, schedule: Schedule, seconds: float, rng: random.Random) -> bool:
    """Start a second run during a random iteration of the first, which is killed later."""
    run.wait_for(rng.randrange(schedule.length // 4))
    run.process.send_signal(signal.SIGSTOP)  # it could end before the second run has started
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("*") if path.name != "output.txt"}
    output = Run(schedule, run.folder, *rng.choice([(), ("--resume",)])).finish(status=2)
    assert f"is in use by another run (process {run.process.pid} on " in output
    assert before == {path: path.stat().st_mtime_ns for path in before}
    run.process.send_signal(signal.SIGCONT)
    time.sleep(rng.uniform(0, seconds / 4))
    return run.kill()


KILLS = {
    AT_ANY_TIME: kill_at_any_time,
    AT_WRITE: kill_at_write,
    AT_FINAL: kill_at_final,
    AT_SWITCH: kill_at_switch,
    UNTAGGED: kill_and_delete_tag,
    SECOND_RUN: kill_after_second_run,
}


def kill_and_resume(kind: str, seed: int, schedule: Schedule, folder: Path, seconds: float) -> dict:
    """Kill a run as specified by ``kind``, resume it to its end, and return its final checkpoint."""
    rng = random.Random(seed)
    hit = False
    while not hit:  # the run may end, or the checkpoint be complete, before the kill
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.time()
        hit = KILLS[kind](Run(schedule, folder), schedule, seconds, rng)
        seconds = min(seconds, time.time() - begin)
    Run(schedule, folder, "--resume").finish()
    assert not list(folder.glob("*.tmp")), "the temporary file of the killed run is still there"
    return load_final(folder)


def load_final(folder: Path) -> dict:
    final = torch.load(folder / "model_final.pth", weights_only=True)
    del final["trainer"]["hooks"]["ExactResume"]["config"]  # it contains the output folder
    return final


def differences(a, b, name: str = "") -> list[str]:
    """Names of the entries that differ between two nested checkpoints."""
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
    """For each kill, its kind and the differences from the uninterrupted run."""
    begin = time.time()
    Run(schedule, output / "uninterrupted").finish()
    seconds = time.time() - begin
    expected = load_final(output / "uninterrupted")

    def one(number: int) -> tuple[str, list[str]]:
        folder, kind = output / f"kill_{number}", kinds[number]
        differing = differences(expected, kill_and_resume(kind, number, schedule, folder, seconds))
        print(f"kill {number}, {kind}: {'identical' if not differing else differing[:5]}", flush=True)
        if not differing:
            shutil.rmtree(folder)
        return kind, differing

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(one, range(len(kinds))))


def kinds_of_kills(number: int) -> list[str]:
    eighth = number // 8
    special = [kind for kind in KILLS if kind != AT_ANY_TIME] * eighth
    return special + [AT_ANY_TIME] * (number - len(special))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=NUM_KILLS)
    parser.add_argument("--output", type=Path, default=Path("output/kills"))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    results = check(kinds_of_kills(args.kills), Schedule(), args.output, args.parallel)
    killed = Counter(kind for kind, _ in results)
    same = Counter(kind for kind, differing in results if not differing)
    for kind in killed:
        print(f"{kind}: {same[kind]} of {killed[kind]} resumed runs are identical, bit for bit")
    sys.exit(sum(same.values()) < len(results))


def train_and_report() -> None:
    """The training command, which also reports the start of each iteration."""
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

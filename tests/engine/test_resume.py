"""Runs that are resumed within one process; tests/reliability kills and resumes real processes."""

import copy
import multiprocessing
import random
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from kill_and_resume import differences, load_final
from small_runs import cut, make_cfg

from pwlu_det import PWLU, CheckpointError, ConfigError, Trainer
from pwlu_det.checkpoint.atomic import atomic_save, atomic_writer
from pwlu_det.checkpoint.checkpointer import Checkpointer, Resumable, find_resumable
from pwlu_det.engine.resume import ExactResume, describe_changes, settle_seed
from pwlu_det.engine.run_lock import lock_output_dir

PRECISE_BN = ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2]
AMP = ["SOLVER.AMP.ENABLED", True]
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
CLIP_VALUE = ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"]


def train(cfg, resume=False, hooks=()):
    trainer = Trainer(cfg)
    trainer.register_hooks(list(hooks))
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


VARIANTS = {
    "float32": ([], {}),
    "autocast and PreciseBN": ([*AMP, *PRECISE_BN], {}),
    "workers with random sizes and flips": (
        [
            "DATALOADER.NUM_WORKERS",
            2,
            "DATALOADER.ASPECT_RATIO_GROUPING",
            True,
            "INPUT.RANDOM_FLIP",
            "horizontal",
        ],
        {"activation": "rrelu"},
    ),
    "Mask R-CNN with a random activation": (CLIP_VALUE, {"detector": "mask_rcnn", "activation": "rpau"}),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_resumed_run_is_identical_bit_for_bit(tmp_path, variant):
    options, rest = variant
    train(make_cfg(tmp_path / "whole", *options, **rest))
    expected = load_final(tmp_path / "whole")
    for iteration in (2, 5):  # on either side of the switch
        folder = cut(tmp_path / "whole", tmp_path / str(iteration), iteration)
        torch.manual_seed(iteration)
        train(make_cfg(folder, *options, **rest), resume=True)
        assert differences(expected, load_final(folder)) == []


def test_run_without_a_seed_resumes_with_its_random_seed(tmp_path):
    cfg = settle_seed(make_cfg(tmp_path / "whole", "SEED", -1))
    assert cfg.SEED >= 0
    train(cfg)
    folder = cut(tmp_path / "whole", tmp_path / "cut", 2)
    resumable = find_resumable(str(folder))
    assert settle_seed(make_cfg(folder, "SEED", 3), resumable).SEED == 3
    resumed = settle_seed(make_cfg(folder, "SEED", -1), resumable)
    assert resumed.SEED == cfg.SEED
    train(resumed, resume=True)
    assert differences(load_final(tmp_path / "whole"), load_final(folder)) == []


class Watch(HookBase):
    """Records the parameters and statistics of all PWLUs after each step."""

    def __init__(self):
        self.states, self.dtypes = [], set()

    def before_train(self):
        self.sites = [m for m in self.trainer.model.modules() if isinstance(m, PWLU)]
        for site in self.sites:
            site.register_forward_pre_hook(lambda _, inputs: self.dtypes.add(inputs[0].dtype))
        self.before_all = self._state()

    def after_step(self):
        self.states.append(self._state())

    def _state(self):
        return [copy.deepcopy(site.state_dict()) for site in self.sites]


def parameters(state):
    return [
        {key: value for key, value in site.items() if "slope" in key or "bound" in key or key == "points"}
        for site in state
    ]


@pytest.mark.parametrize("options", [[], CLIP_VALUE, PRECISE_BN], ids=["norm", "value", "PreciseBN"])
def test_phases_under_autocast(tmp_path, options):
    watch, options = Watch(), [*AMP, "MODEL.ACTIVATION.WEIGHT_DECAY", 0.1, *options]
    train(make_cfg(tmp_path, *options, detector="mask_rcnn"), hooks=[watch])
    assert torch.bfloat16 in watch.dtypes
    for state in watch.states[:4]:
        assert differences(parameters(watch.before_all), parameters(state)) == []
        assert all(site["running_mean"].dtype == torch.float32 for site in state)
    assert [int(site["num_batches"]) for site in watch.states[-1]] == [4] * len(watch.sites)
    for before, after in zip(parameters(watch.states[4]), parameters(watch.states[-1])):
        assert len(differences(before, after)) == 5


def test_changed_config_values_are_logged(tmp_path, caplog):
    train(make_cfg(tmp_path / "whole"))
    folder = cut(tmp_path / "whole", tmp_path / "cut", 2)
    with caplog.at_level("WARNING"):
        train(make_cfg(folder, "SOLVER.BASE_LR", 0.01, "DATALOADER.NUM_WORKERS", 1), resume=True)
    assert "Changed keys:\n  SOLVER.BASE_LR: 0.02 -> 0.01" in caplog.text
    assert "NUM_WORKERS" not in caplog.text and "OUTPUT_DIR" not in caplog.text

    folder = cut(tmp_path / "whole", tmp_path / "other", 2)
    with pytest.raises(CheckpointError, match=r"--resume: .*model_0000002.pth does not match the model: \d+"):
        train(make_cfg(folder, activation="prelu"), resume=True)
    assert "MODEL.ACTIVATION.NAME: 'pwlu' -> 'prelu'" in caplog.text


def test_config_changes_are_found_at_any_depth():
    old = {"A": 1, "B": {"C": [1, 2], "D": "x"}, "TEST": {"AUG": 1}, "OUTPUT_DIR": "a"}
    new = {"A": 1, "B": {"C": [1, 3], "E": "x"}, "TEST": {"AUG": 2}, "OUTPUT_DIR": "b"}
    absent = "'(no such key)'"
    assert describe_changes(old, new) == [
        "B.C: [1, 2] -> [1, 3]",
        f"B.D: 'x' -> {absent}",
        f"B.E: {absent} -> 'x'",
    ]


def test_random_numbers_depend_on_the_iteration_and_the_rank(cfg, monkeypatch):
    cfg.SEED = 3
    hook = ExactResume(cfg)

    def draw(iteration, rank):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.before_step()
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    numbers = [draw(iteration, rank) for iteration in (0, 1) for rank in (0, 1)]
    assert all(len(set(column)) == 4 for column in zip(*numbers))
    assert draw(1, 1) == numbers[-1]


@pytest.mark.parametrize(
    "rank, world_size, saved, expected",
    [
        (0, 2, [10.0, 30.0], 10.0),
        (1, 2, [10.0, 30.0], 30.0),  # not that of rank 0
        (1, 3, [10.0, 30.0], 20.0),  # another number of processes: the mean
        (0, 1, [None, 30.0], 30.0),
        (0, 1, [None], 100.0),  # not RetinaNet
    ],
)
def test_each_rank_gets_its_own_loss_normalizer(cfg, monkeypatch, rank, world_size, saved, expected):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    hook, model = ExactResume(cfg), torch.nn.Module()
    model.loss_normalizer = 100.0
    hook.trainer = SimpleNamespace(model=model)
    hook.load_state_dict({"config": "", "loss_normalizers": saved})
    assert model.loss_normalizer == expected
    assert hook.state_dict()["loss_normalizers"] == saved


@pytest.mark.parametrize("saved", [[float("nan")], [-1.0], [0.0], ["x"], 5.0, [], None])
def test_damaged_loss_normalizers_are_an_error(cfg, saved):
    hook = ExactResume(cfg)
    hook.trainer = SimpleNamespace(model=torch.nn.Module())
    with pytest.raises(CheckpointError, match="loss_normalizers"):
        hook.load_state_dict({"config": "", "loss_normalizers": saved})


def resumable_with(config) -> Resumable:
    return Resumable("m.pth", {}, {"trainer": {"hooks": {"ExactResume": {"config": config}}}})


@pytest.mark.parametrize("seed", ["-1", "4294967296", "x", "1.5", "[1]", "null", "true"])
def test_seed_out_of_range_in_a_checkpoint(cfg, seed):
    cfg.SEED = -1
    with pytest.raises(
        CheckpointError, match=r"m\.pth: its SEED is .*; it must be an integer from 0 to 2147483647"
    ):
        settle_seed(cfg, resumable_with(f"SEED: {seed}"))
    with pytest.raises(CheckpointError, match="its SEED is None"):
        settle_seed(cfg, resumable_with("OTHER: 1"))


@pytest.mark.parametrize(
    "config", ["[", "5", None, b"x", BOMB], ids=["brace", "number", "none", "bytes", "aliases"]
)
def test_damaged_config_in_a_checkpoint(cfg, config):
    cfg.SEED = -1
    with pytest.raises(CheckpointError, match=r"m\.pth has no valid trainer state"):
        settle_seed(cfg, resumable_with(config))


# --- the final checkpoint -------------------------------------------------------------------------


def remove(file):
    file.unlink()


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 iterations with checkpoints after iterations 3 and 7."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(make_cfg(folder, "SOLVER.CHECKPOINT_PERIOD", 4))
    return folder


@pytest.mark.parametrize("last", ["model_0000007.pth", "model_final.pth", None])
@pytest.mark.parametrize("damage", [remove, cut_short])
def test_final_checkpoint_is_written_again(finished, tmp_path, damage, last, caplog):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    damage(folder / "model_final.pth")
    (folder / "last_checkpoint").unlink()
    if last:
        (folder / "last_checkpoint").write_text(last)
    trainer = train(make_cfg(folder, "SOLVER.CHECKPOINT_PERIOD", 4), resume=True)
    assert trainer.start_iter == 8  # nothing was trained again
    assert differences(load_final(finished), load_final(folder)) == []
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_whole_final_checkpoint_is_kept(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = (folder / "model_final.pth").stat()
    train(make_cfg(folder, "SOLVER.CHECKPOINT_PERIOD", 4), resume=True)
    after = (folder / "model_final.pth").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_run_is_refused_while_another_one_is_in_its_folder(tmp_path):
    cfg = make_cfg(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=lambda: hold(tmp_path))
    process.start()
    while not (tmp_path / "locked").exists():
        time.sleep(0.05)
    try:
        with pytest.raises(ConfigError, match="is in use by another run"):
            train(cfg)
    finally:
        process.kill()
        process.join()
    assert not list(tmp_path.glob("*.pth"))


def hold(folder):
    with lock_output_dir(str(folder)):
        (folder / "locked").touch()
        time.sleep(600)


# --- damaged checkpoints --------------------------------------------------------------------------


def write_run(folder, iterations=(4, 9, 14)):
    for iteration in iterations:
        content = {
            "model": {"w": torch.randn(1000)},
            "trainer": {"iteration": iteration},
            "iteration": iteration,
        }
        atomic_save(content, str(folder / f"model_{iteration:07d}.pth"))
    (folder / "last_checkpoint").write_text(f"model_{iterations[-1]:07d}.pth")
    return folder / f"model_{iterations[-1]:07d}.pth", str(folder / f"model_{iterations[-2]:07d}.pth")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGES = {
    "truncated": truncate,
    "a flipped bit": flip_a_bit,
    "empty": lambda file: file.write_bytes(b""),
    "foreign": lambda file: file.write_text("not a checkpoint"),
    "not from training": lambda file: torch.save({"model": {}}, file),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_is_named_and_the_newest_intact_one_is_used(tmp_path, damage, caplog):
    last, before = write_run(tmp_path)
    assert find_resumable(str(tmp_path)) == Resumable(str(last))
    damage(last)
    model = torch.nn.ParameterDict({"w": torch.zeros(1000)})
    with caplog.at_level("WARNING"):
        Checkpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert torch.equal(model["w"], torch.load(before)["model"]["w"])
    assert f"{last} cannot be resumed (" in caplog.text and f"using {before} instead" in caplog.text


def test_no_intact_checkpoint_is_an_error(tmp_path):
    assert find_resumable(str(tmp_path)) == Resumable()
    write_run(tmp_path)
    for file in tmp_path.glob("*.pth"):
        truncate(file)
    with pytest.raises(CheckpointError, match=r"has no intact checkpoint(.|\n)*model_0000014.pth: ") as error:
        find_resumable(str(tmp_path))
    assert str(error.value).count("\n") == 3


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="on the way"), atomic_writer(str(path)) as f:
        f.write(b"half of the n")
        raise RuntimeError("on the way")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_writer(str(path)) as f:
        f.write(b"new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]

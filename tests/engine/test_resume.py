"""Runs that are resumed within one process; tests/reliability kills and resumes real processes."""

import copy

import pytest
import torch
from detectron2.engine import HookBase
from kill_and_resume import differences, load_final
from small_runs import cut, make_cfg

from pwlu_det import PWLU, CheckpointError, Trainer
from pwlu_det.checkpoint.atomic import atomic_save, atomic_writer
from pwlu_det.checkpoint.checkpointer import Checkpointer, Resumable, find_resumable
from pwlu_det.engine.resume import describe_changes, settle_seed

PRECISE_BN = ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2]
AMP = ["SOLVER.AMP.ENABLED", True]
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

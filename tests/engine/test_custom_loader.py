"""Trainers with a custom loader, mapper or dataset."""

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from kill_and_resume import differences, load_final
from small_runs import cut, make_cfg
from torch.utils.data import IterableDataset

import pwlu_det
from pwlu_det.data.digits import digits_dir


class CustomLoader(pwlu_det.Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg)


class CustomMapper(pwlu_det.Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        augmentations = [T.RandomBrightness(0.5, 1.5), T.RandomFlip()]
        mapper = DatasetMapper(cfg, is_train=True, augmentations=augmentations)
        return pwlu_det.build_train_loader(cfg, mapper=mapper)


def train(trainer_type, cfg, resume=False):
    trainer = trainer_type(cfg)
    trainer.resume_or_load(resume)
    trainer.train()


def run_and_resume(trainer_type, tmp_path, *options):
    train(trainer_type, make_cfg(tmp_path / "whole", *options))
    folder = cut(tmp_path / "whole", tmp_path / "cut", 2)
    train(trainer_type, make_cfg(folder, *options), resume=True)
    return differences(load_final(tmp_path / "whole"), load_final(folder))


def test_loader_of_detectron2_trains_and_warns_that_resuming_is_not_exact(tmp_path, caplog):
    precise_bn = ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2)
    with caplog.at_level("WARNING"):
        train(CustomLoader, make_cfg(tmp_path / "whole", *precise_bn))
        assert "data stream restarts" not in caplog.text
        train(CustomLoader, make_cfg(cut(tmp_path / "whole", tmp_path / "cut", 2), *precise_bn), resume=True)
    assert "not built by pwlu_det.build_train_loader, so its data stream restarts" in caplog.text


def test_custom_mapper_resumes_exactly(tmp_path):
    assert run_and_resume(CustomMapper, tmp_path, "DATALOADER.NUM_WORKERS", 2) == []


@pytest.fixture
def register():
    """Register a function that returns a dataset with the classes of the digits."""
    names = []

    def register(name, function):
        DatasetCatalog.register(name, function)
        MetadataCatalog.get(name).set(thing_classes=[str(i) for i in range(10)])
        names.append(name)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def without_sizes():
    digits_dir()
    return [
        {k: v for k, v in d.items() if k not in ("width", "height")}
        for d in DatasetCatalog.get("digits_train")
    ]


def test_entries_without_width_and_height(tmp_path, register, caplog):
    register("sizeless", without_sizes)
    options = ("DATASETS.TRAIN", "('sizeless',)", "DATALOADER.ASPECT_RATIO_GROUPING", True)
    with caplog.at_level("WARNING"):
        assert run_and_resume(pwlu_det.Trainer, tmp_path, *options) == []
    assert "ASPECT_RATIO_GROUPING has no effect: the dataset has no width and height" in caplog.text


class Stream(IterableDataset):
    def __iter__(self):
        images = DatasetCatalog.get("digits_train")
        while True:
            yield from images


def test_iterable_dataset(tmp_path, register):
    register("stream", Stream)
    options = ("DATASETS.TRAIN", "('stream',)", "DATALOADER.ASPECT_RATIO_GROUPING", False)
    train(pwlu_det.Trainer, make_cfg(tmp_path / "run", *options))
    assert int(load_final(tmp_path / "run")["model"]["backbone.bottom_up.res3.0.act1.num_batches"]) == 4

    epochs = ("MODEL.ACTIVATION.PWLU.PHASE1_ITERS", -1)
    with pytest.raises(pwlu_det.ConfigError, match=r"PHASE1_EPOCHS: the data loader has no dataset"):
        pwlu_det.Trainer(make_cfg(tmp_path / "epochs", *options, *epochs))


class SaveAt(pwlu_det.engine.trainer.hooks.HookBase):
    """Writes a checkpoint outside the checkpoint period, as BestCheckpointer does."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            self.trainer.checkpointer.save("model_best", iteration=self.trainer.iter)

    def state_dict(self):
        return {"best": torch.tensor(0.5).numpy()[()]}  # a NumPy scalar


@pytest.mark.parametrize("iteration", [0, 4])
def test_checkpoint_of_any_hook_resumes_exactly(tmp_path, iteration, caplog):
    cfg = make_cfg(tmp_path / "whole", "SOLVER.CHECKPOINT_PERIOD", 100)
    trainer = pwlu_det.Trainer(cfg)
    trainer.register_hooks([SaveAt(iteration)])
    trainer.train()
    folder = tmp_path / "cut"
    folder.mkdir()
    (tmp_path / "whole/model_best.pth").rename(folder / "model_best.pth")
    (folder / "last_checkpoint").write_text("model_best.pth")
    with caplog.at_level("WARNING"):
        train(pwlu_det.Trainer, make_cfg(folder, "SOLVER.CHECKPOINT_PERIOD", 100), resume=True)
    assert "processes" not in caplog.text
    whole, resumed = load_final(tmp_path / "whole"), load_final(folder)
    for state in (whole, resumed):
        state["trainer"]["hooks"].pop("SaveAt", None)
    assert differences(whole, resumed) == []

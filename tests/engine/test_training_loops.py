"""The loops of detectron2's plain_train_net.py and lazyconfig_train_net.py, without and with our lines."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from detectors import batch, set_detector
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventStorage
from torch import nn
from toy import Toy, images, same, sgd, train

import pwlu_det
from pwlu_det import PWLU

DOCS = (Path(__file__).resolve().parents[2] / "docs/training_loops.md").read_text()
ANY, PLAIN, LAZY = ({} for _ in range(3))
for namespace, text in zip((ANY, PLAIN, LAZY), re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)):
    exec(text, namespace)
NO_HOOK = "no TwoPhaseHook is registered"


def sites(model):
    return [m for m in model.modules() if isinstance(m, PWLU)]


@pytest.fixture
def detector(cfg):
    """A config and a model in phase I up to iteration 2 of 4."""
    set_detector(cfg, "retinanet", 18)
    cfg.MODEL.ACTIVATION.NAME, cfg.MODEL.ACTIVATION.PWLU.PHASE1_ITERS = "pwlu", 2
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 4, 0
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 0.01, 0.1
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def plain_loop(cfg, model, data_loader, folder):
    """The loop of plain_train_net.py."""
    model.train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    checkpointer = DetectionCheckpointer(model, folder, optimizer=optimizer, scheduler=scheduler)
    with EventStorage(0) as storage:
        for data, iteration in zip(data_loader, range(cfg.SOLVER.MAX_ITER)):
            storage.iter = iteration
            losses = sum(model(data).values())
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
            scheduler.step()
    checkpointer.save("model_final")


def test_plain_loop_without_the_hook_is_heard_of(detector, tmp_path):
    cfg, model = detector
    with pytest.warns(UserWarning, match=NO_HOOK) as record:
        plain_loop(cfg, model, [batch()] * 4, str(tmp_path))
    messages = [str(warning.message) for warning in record if "PWLU" in str(warning.message)]
    number = len(sites(model))  # once each, although there are four iterations
    assert sum(NO_HOOK in m and "weight decay" in m for m in messages) == number
    assert sum("a site in phase I are no longer those of ReLU" in m for m in messages) == number
    assert len(messages) == 2 * number
    assert all(site.collecting for site in sites(model))


def test_plain_loop_of_the_docs_learns_in_two_phases(detector):
    cfg, model = detector
    start = sites(model)[0].points.detach().clone()
    seen = []

    def look(site, _):
        seen.append((int(site.phase), site.points.detach().clone()))

    sites(model)[0].register_forward_pre_hook(look)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="PWLU")
        PLAIN["do_train"](cfg, model, [batch()] * 4)
    assert [phase for phase, _ in seen] == [1, 1, 2, 2]
    assert torch.equal(seen[1][1], start) and not torch.equal(seen[3][1], seen[2][1])
    assert all(int(site.num_batches) == 2 for site in sites(model))


@pytest.mark.parametrize("phase1_iters", [0, 3])
def test_any_loop_of_the_docs_gives_what_the_hook_gives(phase1_iters):
    expected = Toy()
    train(expected, phase1_iters, 6)
    model = Toy(collecting=False)
    batches = ((x, None) for x in (images(i) for i in range(6)))
    ANY["train"](model, sgd(model), batches, lambda output, _: output["loss"], phase1_iters)
    assert same(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_two_phase_resumes(stop):
    expected = Toy()
    train(expected, 3, 6)
    model, state = Toy(), None
    for first, last in ((0, stop), (stop, 6)):
        model = copy.deepcopy(model)
        optimizer = sgd(model)
        phases = pwlu_det.TwoPhase(model, optimizer, 3)
        if state is not None:
            optimizer.load_state_dict(state[0])
            phases.load_state_dict(state[1])
        for i in range(first, last):
            phases.before_step()
            optimizer.zero_grad()
            model(images(i))["loss"].backward()
            optimizer.step()
            phases.after_step()
        state = optimizer.state_dict(), phases.state_dict()
        phases.close()
        assert phases.iteration == last and not any(site.defers_update for site in model.sites)
    assert same(model.state_dict(), expected.state_dict())


def test_forwards_between_steps_do_not_count():
    """Such as those of PreciseBN, or of a loss on other data, in training mode."""
    expected, model = Toy(), Toy()
    train(expected, 3, 6)

    class Between(HookBase):
        def after_step(self):
            model(images(99))

    train(model, 3, 6, hooks_before=[Between()])
    assert same(model.state_dict(), expected.state_dict())


# --- lazyconfig_train_net.py ----------------------------------------------------------------------


class LossOf(nn.Module):
    """A backbone with a loss, since detectron2's lazy detectors are large."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return {"loss": sum(y.square().mean() for y in self.backbone(images).values())}


def lazy_config(folder):
    folder.mkdir(exist_ok=True)
    cfg = LazyConfig.load(model_zoo.get_config_file("common/train.py"))
    cfg.optimizer = model_zoo.get_config("common/optim.py").SGD
    cfg.optimizer.weight_decay, cfg.optimizer.lr = 0.1, 0.01
    cfg.train.output_dir, cfg.train.device, cfg.train.init_checkpoint = str(folder), "cpu", ""
    return cfg


def lazy_loop(cfg, model, extra_hooks=(), resume=False, max_iter=4):
    """The loop of lazyconfig_train_net.py."""
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    trainer = SimpleTrainer(model, [images] * 10, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    trainer.register_hooks(
        [*extra_hooks, hooks.IterationTimer(), hooks.PeriodicCheckpointer(checkpointer, period=1)]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, max_iter)
    return optimizer


def resnet(cfg, name):
    set_detector(cfg, "retinanet", 18)
    cfg.MODEL.BACKBONE.NAME = name
    torch.manual_seed(0)
    return build_backbone(cfg, ShapeSpec(channels=3))


def test_lazy_loop_without_the_hook_is_heard_of(cfg, tmp_path):
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    model = instantiate(L(LossOf)(backbone=resnet(cfg, "build_act_resnet_backbone")))
    with pytest.warns(UserWarning, match=NO_HOOK):
        lazy_loop(lazy_config(tmp_path), model)
    assert all(site.collecting for site in sites(model))


def test_lazy_loop_of_the_docs_learns_in_two_phases_and_resumes(cfg, tmp_path):
    def run(folder, *stops):
        for stop in stops:
            lazy = lazy_config(folder)
            model = LossOf(resnet(cfg, "build_resnet_backbone"))
            LAZY["convert"](lazy, model, freeze_at=0)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="PWLU")
                optimizer = lazy_loop(lazy, model, [pwlu_det.TwoPhaseHook(2)], resume=True, max_iter=stop)
        return model, optimizer

    whole, optimizer = run(tmp_path / "whole", 4)
    assert len(sites(whole)) == 17
    assert all(int(site.phase) == 2 and int(site.num_batches) == 2 for site in sites(whole))
    own = {p for site in sites(whole) for p in site.parameters()}
    decays = [(p in own, g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]]
    assert set(decays) == {(True, 0.0), (False, 0.0), (False, 0.1)}  # norms are not decayed
    points = [
        torch.load(tmp_path / f"whole/model_{i:07d}.pth")["model"]["backbone.res3.0.act1.points"]
        for i in (0, 1, 2, 3)
    ]
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[1], points[2]) and not torch.equal(points[2], points[3])

    resumed, _ = run(tmp_path / "resumed", 1, 3, 4)  # in phase I, and in phase II
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-4, atol=1e-5)

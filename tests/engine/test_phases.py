import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import HookBase
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from toy import Batches, Toy, images, parameters, same, sgd, train

from pwlu_det import PWLU, ConfigError, build_phase_hook
from pwlu_det.activations import two_phase
from pwlu_det.checkpoint.checkpointer import Checkpointer


class Record(HookBase):
    """Records the state of the model before and after each step."""

    def __init__(self):
        self.before, self.after = [], []

    def before_step(self):
        self.before.append(copy.deepcopy(self.trainer.model.state_dict()))

    def after_step(self):
        self.after.append(copy.deepcopy(self.trainer.model.state_dict()))


class Save(HookBase):
    """Writes a checkpoint after each step, as detectron2's PeriodicCheckpointer does."""

    def __init__(self, folder):
        self.folder = folder

    def after_step(self):
        checkpointer = Checkpointer(self.trainer.model, self.folder, trainer=self.trainer)
        checkpointer.save(f"model_{self.trainer.iter}")


OPTIMIZERS = {
    "sgd": sgd,
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, weight_decay=0.5, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_phase_1_freezes_every_parameter_and_phase_2_trains_it(name):
    model = Toy()
    start = parameters(*model.sites)
    conv = model.conv.weight.detach().clone()
    optimizer = OPTIMIZERS[name](model)
    train(model, phase1_iters=6, max_iter=6, optimizer=optimizer)
    assert same(parameters(*model.sites), start)
    assert not torch.equal(model.conv.weight, conv)
    assert not any(p in optimizer.state for site in model.sites for p in site.parameters())

    train(model, phase1_iters=6, max_iter=7, start=6, optimizer=optimizer)
    realigned = parameters(*model.sites)
    train(model, phase1_iters=6, max_iter=12, start=7, optimizer=optimizer)
    for key, value in parameters(*model.sites).items():
        assert not torch.equal(value, realigned[key]), f"{key} does not learn"


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_phase_1_freezes_parameters_under_gradient_clipping(cfg, clip_type):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    model = Toy()
    start = parameters(*model.sites)
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1
    )
    train(model, phase1_iters=5, max_iter=5, optimizer=optimizer)
    assert same(parameters(*model.sites), start)
    train(model, phase1_iters=5, max_iter=8, start=5, optimizer=optimizer)
    assert not same(parameters(*model.sites), start)


def test_phase_1_trains_as_with_relu():
    model, relu = Toy(), Toy()
    relu.act1 = relu.act2 = nn.ReLU()
    train(model, phase1_iters=5, max_iter=5)
    train(relu, phase1_iters=5, max_iter=5)
    assert torch.equal(model.conv.weight, relu.conv.weight)
    assert torch.equal(model.conv2.bias, relu.conv2.bias)


def test_statistics_and_realignment_follow_the_paper():
    model, record = Toy(), Record()
    train(model, phase1_iters=4, max_iter=5, hooks_before=[record])

    # equation 5, from the inputs of the site in phase I
    mu = sigma = None
    for x in model.inputs[:4]:
        x = x.double().numpy()
        mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
        mu = mean if mu is None else 0.9 * mu + 0.1 * mean
        sigma = std if sigma is None else 0.9 * sigma + 0.1 * std
    after = record.after[3]
    np.testing.assert_allclose(after["act1.running_mean"], mu, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["act1.running_std"], sigma, rtol=1e-5)

    # equation 6, applied before the first forward of iteration 4
    realigned = train(Toy(), phase1_iters=4, max_iter=4).model  # identical up to iteration 4
    realigned.act1.realign()
    assert int(record.before[4]["act1.phase"]) == 1  # this hook runs before the hook under test
    assert len(model.inputs) == 5
    expected = torch.from_numpy(np.stack([mu - 3 * sigma, mu + 3 * sigma]))
    torch.testing.assert_close(realigned.act1.left_bound.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(realigned.act1.right_bound.double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_order_of_hooks_does_not_matter(first, tmp_path):
    model, save, record = Toy(), Save(str(tmp_path)), Record()
    others = {"hooks_before": [record, save]} if first else {"hooks_after": [record, save]}
    train(model, phase1_iters=3, max_iter=6, **others)
    phases = [int(state["act1.phase"]) for state in record.after]
    assert phases == [1, 1, 1, 2, 2, 2]
    assert [int(state["act1.num_batches"]) for state in record.after] == [1, 2, 3, 3, 3, 3]
    saved = torch.load(tmp_path / "model_2.pth", weights_only=True)["model"]
    assert int(saved["act1.num_batches"]) == 3


@pytest.mark.parametrize("saved_at", [0, 2, 3, 4, 5])
def test_resume_on_either_side_of_the_switch_is_exact(saved_at, tmp_path):
    """The switch is at iteration 4: saved_at 3 is the last checkpoint before it, 4 the first after it."""
    whole = Toy()
    train(whole, phase1_iters=4, max_iter=9, hooks_before=[Save(str(tmp_path))])

    resumed = Toy()
    optimizer = sgd(resumed)
    checkpointer = Checkpointer(resumed, str(tmp_path))
    rest = checkpointer.load(str(tmp_path / f"model_{saved_at}.pth"))
    optimizer.load_state_dict(rest["trainer"]["optimizer"])
    train(resumed, phase1_iters=4, max_iter=9, start=saved_at + 1, optimizer=optimizer)
    assert same(whole.state_dict(), resumed.state_dict())


def test_only_training_steps_collect_statistics():
    class OtherForwards(HookBase):
        def after_step(self):
            model = self.trainer.model
            with torch.no_grad():
                model(images(500))  # as PreciseBN does
                model.eval()
                model(images(501))  # as evaluation does
            model(images(502))
            model.train()

    plain, disturbed = Toy(), Toy()
    train(plain, phase1_iters=4, max_iter=4)
    train(disturbed, phase1_iters=4, max_iter=4, hooks_after=[OtherForwards()])
    assert same(plain.state_dict(), disturbed.state_dict())


def test_sites_learned_in_a_checkpoint_are_kept_and_only_the_others_run_phase_1():
    learned = Toy(collecting=False)
    with torch.no_grad():
        learned.act1.points.normal_()
    model = Toy()
    missing = model.load_state_dict(
        {key: value for key, value in learned.state_dict().items() if "act2" not in key}, strict=False
    ).missing_keys
    assert missing and all(key.startswith("act2.") for key in missing)
    record = Record()
    train(model, phase1_iters=3, max_iter=4, hooks_after=[record])
    assert [int(state["act1.phase"]) for state in record.after] == [2, 2, 2, 2]
    assert [int(state["act2.phase"]) for state in record.after] == [1, 1, 1, 2]
    assert int(record.after[-1]["act1.num_batches"]) == 0
    assert not torch.equal(record.after[0]["act1.points"], learned.act1.points)  # trained from the start


def test_model_without_sites_is_a_warning(caplog):
    model = Toy()
    model.requires_grad_(False)
    model.conv.requires_grad_(True)
    with caplog.at_level("WARNING"):
        train(model, phase1_iters=2, max_iter=1)
    assert "0 of 0 trainable sites collect statistics" in caplog.text


def test_frozen_sites_do_not_change():
    model = Toy()
    model.act1.requires_grad_(False)
    start = parameters(model.act1)
    train(model, phase1_iters=2, max_iter=5, optimizer=sgd(model))
    assert same(parameters(model.act1), start)
    assert model.act1.collecting and int(model.act1.num_batches) == 0
    assert not model.act2.collecting


def test_realignment_is_logged(caplog):
    with caplog.at_level("INFO", logger="detectron2.pwlu_det.engine.phases"):
        train(Toy(), phase1_iters=2, max_iter=3)
    text = caplog.text
    assert "2 of 2 trainable sites collect statistics up to iteration 2" in text
    assert "realigned 2 sites at iteration 2; left bounds in [" in text


def test_hook_cleans_up_after_training():
    model = Toy()
    trainer = train(model, phase1_iters=3, max_iter=2)
    assert not model._forward_hooks
    optimizer = trainer.optimizer
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    assert not any(site.defers_update for site in model.sites)


# --- several processes --------------------------------------------------------------------------


def _train_rank(rank: int, num_ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    model = Toy()
    ddp = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    record = Record()
    train(ddp, 4, 10, optimizer=sgd(model), loader=Batches(0, rank, num_ranks), hooks_after=[record])
    torch.save(record.after, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


def test_processes_share_statistics_and_parameters(tmp_path):
    num_ranks = 2
    mp.spawn(_train_rank, (num_ranks, str(tmp_path)), nprocs=num_ranks)
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(num_ranks)]
    for other in ranks[1:]:
        for iteration, (a, b) in enumerate(zip(ranks[0], other)):
            assert same(a, b), f"ranks differ after iteration {iteration}"

    single, record = Toy(), Record()
    train(single, 4, 10, hooks_after=[record])
    for one, many in zip(record.after, ranks[0]):
        for key, value in one.items():
            torch.testing.assert_close(many[f"module.{key}"], value, rtol=1e-4, atol=1e-5)


def _collect_uneven(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = Toy()
    ddp = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    # No training: DDP averages gradients with equal weights, whatever the sizes of the parts.
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    train(ddp, 4, 5, optimizer=still, loader=[images(i).split([7, 1])[rank] for i in range(5)])
    torch.save(model.state_dict(), f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


def test_statistics_of_uneven_batches_match_the_global_batch(tmp_path):
    mp.spawn(_collect_uneven, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(2))
    assert same(first, second)
    single = Toy()
    train(single, 4, 5, optimizer=torch.optim.SGD(single.parameters(), lr=0.0))
    for key, value in single.state_dict().items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6)


# --- the length of phase I (T') from a config ---------------------------------------------------


class Loader:
    """Nested like detectron2's data loaders."""

    def __init__(self, num_images):
        self.dataset = nn.Module()
        self.dataset.dataset = list(range(num_images))


def test_phase_1_in_epochs_is_rounded_down_to_iterations(cfg):
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 16, 270000
    assert build_phase_hook(cfg, Loader(117266)).phase1_iters == 36645  # COCO train2017
    cfg.MODEL.ACTIVATION.PWLU.PHASE1_ITERS = 7
    assert build_phase_hook(cfg, Loader(117266)).phase1_iters == 7
    cfg.MODEL.ACTIVATION.PWLU.REALIGN = False
    assert build_phase_hook(cfg, Loader(117266)).phase1_iters == 0
    cfg.MODEL.ACTIVATION.NAME = "relu"
    assert build_phase_hook(cfg, Loader(117266)) is None


def test_phase_1_must_be_shorter_than_training(cfg):
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 10, 50
    with pytest.raises(ConfigError, match=r"PHASE1_EPOCHS: .* 50 iterations.*less than SOLVER.MAX_ITER = 50"):
        build_phase_hook(cfg, Loader(100))
    assert build_phase_hook(cfg, Loader(99)).phase1_iters == 49


def test_epochs_of_a_loader_without_a_dataset_are_not_counted_in_batches(cfg):
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    with pytest.raises(ConfigError, match="PHASE1_EPOCHS: the data loader has no dataset with a length"):
        build_phase_hook(cfg, [images(0)] * 100)


def test_statistics_are_pooled_in_float64():
    """In float32, the squares of values far from zero would swallow their variance."""
    generator = torch.Generator().manual_seed(0)
    site = PWLU(2)
    site.begin_collecting()
    site.defers_update = True
    parts = [1000 + 0.05 * torch.randn(n, 2, 9, 9, generator=generator) for n in (3, 5)]
    for x in parts:
        site(x)
    mean, std = two_phase._unpack(two_phase._pack(site))
    x = torch.cat(parts).double().numpy()
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, x.std((0, 2, 3)), rtol=1e-2)


def test_parameters_are_in_the_groups_again_after_a_step_that_raised():
    """A caller may save the optimizer's state, or go on training."""

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            assert sum(len(group["params"]) for group in self.param_groups) == 4  # hidden
            raise RuntimeError("on the way")

    model = Toy()
    optimizer = Failing(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="on the way"):
        train(model, phase1_iters=5, max_iter=5, optimizer=optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks

"""Two-phase learning of a model that FSDP2 (``fully_shard``) shards over two processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import HookBase
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toy import Batches, Toy, images, sgd, train

PHASE1, ITERATIONS, RANKS = 3, 6, 2


class Evaluate(HookBase):
    """A forward without backward after each step: FSDP2 leaves the root's parameters unsharded after it."""

    def after_step(self):
        model = self.trainer.model.eval()
        with torch.no_grad():
            model(images(0))
        model.train()


def every_module(model, mesh):
    for child in model.children():
        fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)


SHARDINGS = {
    "every module": every_module,
    "the root": lambda model, mesh: fully_shard(model, mesh=mesh),
    "kept after forward": lambda model, mesh: fully_shard(model, mesh=mesh, reshard_after_forward=False),
}


def train_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    mesh, results = init_device_mesh("cpu", (RANKS,)), {}
    for name, shard in SHARDINGS.items():
        model = Toy()
        shard(model, mesh)
        assert isinstance(model.act1.points, DTensor)
        loader = Batches(0, rank, RANKS)
        train(model, PHASE1, ITERATIONS, optimizer=sgd(model), loader=loader, hooks_after=[Evaluate()])
        model.reshard()
        results[name] = {
            key: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
            for key, value in model.state_dict().items()
        }
    torch.save(results, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(train_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDINGS)
def test_sharded_training_is_that_of_one_process(ranks, name):
    single = Toy()
    train(single, PHASE1, ITERATIONS)
    assert single.act1.phase == 2 and single.act1.left_bound[0] != -3
    for rank in ranks:
        torch.testing.assert_close(rank[name], single.state_dict(), rtol=1e-4, atol=1e-5)

"""F-ReLU with SyncBN: several processes match a single process that has the whole batch."""

import contextlib

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.layers import get_norm
from torch import nn
from torch.autograd import forward_ad

from pwlu_det.activations import FReLU

RANKS, CHANNELS, STEPS = 2, 3, 3

# Number of images on each rank, their height and width, mean on each rank, dtype and layout; norm options.
CASES = {
    "uneven": {"images": (2, 3)},
    "empty on one rank": {"images": (0, 4)},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "channels last": {"channels_last": True},
    "different means": {"means": (1000.0, 1003.0)},
    "one pixel each": {"images": (1, 1), "size": (1, 1)},
    "momentum None": {"options": {"momentum": None}},
    "no running statistics": {"options": {"track_running_stats": False}},
}


def make_module(norm, dtype=torch.float32, options=None) -> FReLU:
    torch.manual_seed(1)
    module = FReLU(CHANNELS, norm=lambda c: norm(c, **(options or {})))
    with torch.no_grad():
        module.norm.weight.uniform_(-1.5, 1.5)
        module.norm.bias.normal_()
    return module.double() if dtype == torch.float64 else module


def make_batches(step, case=None):
    """For each rank, yield x and the gradient of the output."""
    case = case or {}
    random = torch.Generator().manual_seed(step)
    layout = torch.channels_last if case.get("channels_last") else torch.contiguous_format
    for count, mean in zip(case.get("images", (2, 3)), case.get("means", (0.0, 0.0))):
        shape = 2, count, CHANNELS, *case.get("size", (6, 5))
        pair = torch.randn(shape, generator=random, dtype=torch.float64).to(case.get("dtype", torch.float32))
        x, grad = (t.contiguous(memory_format=layout) for t in (pair[0] + mean, pair[1]))
        yield x.requires_grad_(), grad


def train(module, x, grad):
    """Return the output, the gradients of x and the parameters, and the buffers."""
    y = module(x)
    gradients = torch.autograd.grad(y, (x, *module.parameters()), grad)
    return [t.detach().clone() for t in (y, *gradients, *module.buffers())]


def other_derivatives(module, x, grad):
    """A gradient penalty's gradients by x and the parameters, and the tangent of the output for that of x."""
    variables = (x, module.conv.weight, module.norm.weight)
    (first,) = torch.autograd.grad(module(x), x, grad, create_graph=True)
    second = torch.autograd.grad(first.pow(3).sum(), variables)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(module(forward_ad.make_dual(x.detach(), grad))).tangent
    return [t.detach().clone() for t in (tangent, *second)]


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    results = {}
    with count_all_reduces() as dtypes:
        for name, case in CASES.items():
            module = make_module(nn.SyncBatchNorm, case.get("dtype"), case.get("options"))
            batches = (list(make_batches(step, case)) for step in range(STEPS))
            results[name] = [train(module, *batch[rank]) for batch in batches]
    assert dtypes == [torch.float64] * (2 * STEPS * len(CASES)), "one in forward and one in backward"

    for name in "uneven", "empty on one rank":
        case = {**CASES[name], "dtype": torch.float64}
        module = make_module(nn.SyncBatchNorm, torch.float64)
        results[f"{name}: other derivatives"] = other_derivatives(module, *list(make_batches(0, case))[rank])

    x, grad = list(make_batches(0))[rank]
    groups = [dist.new_group([r]) for r in range(RANKS)]
    alone = make_module(nn.SyncBatchNorm, options={"process_group": groups[rank]})
    results["alone"] = train(alone, x, grad)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(make_module(nn.BatchNorm2d))
    named = make_module(lambda channels: get_norm("SyncBN", channels))
    compiled = torch.compile(make_module(nn.SyncBatchNorm), backend="aot_eager")
    for name, module in ("converted", converted), ("named", named), ("compiled", compiled):
        results[name] = train(module, x, grad)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t
    ):
        named(x)
    results["kept"] = sum(size >= x.numel() for size in kept.values())
    if rank == 0:  # a collective operation would hang here, since the other rank does not take part
        results["evaluated"] = converted.eval()(x).detach()
    torch.save(results, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@contextlib.contextmanager
def count_all_reduces():
    """Yield a list to which the dtype of each all-reduce is appended."""
    dtypes, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda tensor, **options: dtypes.append(tensor.dtype) or all_reduce(tensor, **options)
    yield dtypes
    dist.all_reduce = all_reduce


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]


def tolerance(dtype):
    return {"rtol": 0.02, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 2e-4}


@pytest.mark.parametrize("name", CASES)
def test_processes_match_a_single_process(ranks, name):
    case = CASES[name]
    dtype = case.get("dtype", torch.float32)
    single = make_module(nn.BatchNorm2d, dtype, case.get("options"))
    close = {"rtol": 1e-6, "atol": 1e-9} if dtype == torch.float64 else tolerance(dtype)
    num_parameters = len(list(single.parameters()))
    for step in range(STEPS):
        xs, grads = zip(*make_batches(step, case))
        x, grad = torch.cat(xs).detach().requires_grad_(), torch.cat(grads)
        expected = train(single, x, grad)
        shares = [rank[name][step] for rank in ranks]
        for i, whole in enumerate(expected):
            parts = [share[i] for share in shares]
            if i < 2:  # y and the gradient of x
                actual = torch.cat(parts)
                assert [p.stride() for p in parts] == [torch.empty_like(x).stride() for x in xs]
            elif i < 2 + num_parameters:
                actual = sum(parts)
            else:
                actual = parts[0]
                assert torch.equal(*parts), "buffers differ between ranks"
            torch.testing.assert_close(actual, whole, **close)


@pytest.mark.parametrize("name", ["uneven", "empty on one rank"])
def test_second_and_forward_mode_derivatives(ranks, name):
    xs, grads = zip(*make_batches(0, {**CASES[name], "dtype": torch.float64}))
    x = torch.cat(xs).detach().requires_grad_()
    whole = other_derivatives(make_module(nn.BatchNorm2d, torch.float64), x, torch.cat(grads))
    shares = zip(*(rank[f"{name}: other derivatives"] for rank in ranks))
    for i, (expected, parts) in enumerate(zip(whole, shares)):
        torch.testing.assert_close(torch.cat(parts) if i < 2 else sum(parts), expected)


@pytest.mark.parametrize("name", ["converted", "named", "compiled"])
def test_norm_created_in_other_ways(ranks, name):
    for rank in ranks:
        torch.testing.assert_close(rank[name], rank["uneven"][0])


def test_process_group_of_one_rank(ranks):
    for rank, (x, grad) in zip(ranks, make_batches(0)):
        torch.testing.assert_close(rank["alone"], train(make_module(nn.BatchNorm2d), x, grad))


def test_two_tensors_the_size_of_x_are_saved_for_backward(ranks):
    assert [rank["kept"] for rank in ranks] == [2, 2]


def test_evaluation_does_not_synchronize(ranks):
    whole = make_module(nn.BatchNorm2d)
    xs, grads = zip(*make_batches(0))
    train(whole, torch.cat(xs).detach().requires_grad_(), torch.cat(grads))
    torch.testing.assert_close(ranks[0]["evaluated"], whole.eval()(xs[0]).detach())


def test_without_a_process_group_it_is_batch_norm():
    (x, grad), _ = make_batches(0)
    torch.testing.assert_close(
        train(make_module(nn.SyncBatchNorm), x, grad), train(make_module(nn.BatchNorm2d), x, grad)
    )

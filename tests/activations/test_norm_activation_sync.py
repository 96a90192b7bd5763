"""Norm and activation as one op with SyncBN: several processes match one that has the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.autograd import forward_ad

from pwlu_det.activations import build_activation, fuse_norms
from pwlu_det.activations import deferred_norm as module
from pwlu_det.activations.norm_activation import norm_activation

pytestmark = pytest.mark.skipif("cpu" not in module.DEVICES, reason="there are no kernels")

RANKS, C, STEPS = 2, 3, 3

# Number of images on each rank, their height and width, mean on each rank, dtype and layout; the number of
# maps, of which the second has a norm of its own; the activation; norm options.
CASES = {
    "uneven": {"images": (2, 3)},
    "empty on one rank": {"images": (0, 4), "maps": 2},
    "two norms": {"maps": 2},
    "float64": {"dtype": torch.float64, "maps": 2},
    "bfloat16": {"dtype": torch.bfloat16, "maps": 2},
    "channels last": {"channels_last": True, "maps": 2},
    "different means": {"means": (1000.0, 1003.0)},
    "one pixel each": {"images": (1, 1), "size": (1, 1)},
    "momentum None": {"options": {"momentum": None}},
    "no running statistics": {"options": {"track_running_stats": False}},
    "relu": {"name": "relu"},
    "phase I": {"name": "pwlu", "collects": True},
    "phase I, layer-wise": {"name": "pwlu", "collects": True, "activation": {"channel_wise": False}},
}


def make_site(norm, case):
    torch.manual_seed(1)
    activation = build_activation(case.get("name", "swish"), C, **case.get("activation", {}))
    site = nn.ModuleList([norm(C, **case.get("options", {})), activation, norm(C, **case.get("options", {}))])
    if case.get("maps", 1) == 1:
        del site[2]
    for own in site:
        if isinstance(own, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(own.weight, -1.5, 1.5)
            nn.init.normal_(own.bias)
    if case.get("collects"):
        activation.begin_collecting()
    return site.double() if case.get("dtype") == torch.float64 else site


def make_batches(step, case):
    """For each rank, yield the maps and the gradient of the output."""
    random = torch.Generator().manual_seed(step)
    layout = torch.channels_last if case.get("channels_last") else torch.contiguous_format
    for count, mean in zip(case.get("images", (2, 3)), case.get("means", (0.0, 0.0))):
        shape = 3, count, C, *case.get("size", (6, 5))
        three = torch.randn(shape, generator=random, dtype=torch.float64).to(case.get("dtype", torch.float32))
        *maps, grad = (t.contiguous(memory_format=layout) for t in three)
        maps = [(m + mean).requires_grad_() for m in maps[: case.get("maps", 1)]]
        yield maps, grad


def call(site, maps):
    return norm_activation(*site[:2], *maps, *site[2:], fuse_relu=True)


def train(site, maps, grad):
    """Return the output, the gradients of the maps and the parameters, and the buffers."""
    y = call(site, maps)
    gradients = torch.autograd.grad(y, (*maps, *site.parameters()), grad)
    return [t.detach().clone() for t in (y, *gradients, *site.buffers())]


def other_derivatives(site, maps, grad):
    """A gradient penalty's gradients by the maps and the norm's weight, and the output's tangent."""
    variables = (*maps, site[0].weight)
    (first, *_) = torch.autograd.grad(call(site, maps), maps, grad, create_graph=True)
    second = torch.autograd.grad(first.pow(3).sum(), variables)
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(m.detach(), grad) for m in maps]
        tangent = forward_ad.unpack_dual(call(site, dual)).tangent
    return [t.detach().clone() for t in (tangent, *second)]


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    results, counted, all_reduce = {}, [], dist.all_reduce
    dist.all_reduce = lambda tensor, **options: counted.append(1) or all_reduce(tensor, **options)
    for name, case in CASES.items():
        site = make_site(nn.SyncBatchNorm, case)
        batches = (list(make_batches(step, case)) for step in range(STEPS))
        results[name] = [train(site, *batch[rank]) for batch in batches]
    assert len(counted) == 2 * STEPS * len(CASES), "one in forward and one in backward"
    dist.all_reduce = all_reduce

    for name in "uneven", "empty on one rank":
        case = {**CASES[name], "dtype": torch.float64}
        site = make_site(nn.SyncBatchNorm, case)
        results[f"{name}: other derivatives"] = other_derivatives(site, *list(make_batches(0, case))[rank])

    maps, grad = list(make_batches(0, {}))[rank]
    groups = [dist.new_group([r]) for r in range(RANKS)]
    alone = make_site(nn.SyncBatchNorm, {"options": {"process_group": groups[rank]}})
    results["alone"] = train(alone, maps, grad)
    site = make_site(nn.SyncBatchNorm, {})
    model = nn.Sequential(*site)
    assert fuse_norms(model, maps[0]) == ["0"]
    y = model(*maps)
    gradients = torch.autograd.grad(y, (*maps, *site.parameters()), grad)
    results["any model"] = [t.detach().clone() for t in (y, *gradients, *site.buffers())]
    if rank == 0:  # a collective operation would hang here, since the other rank does not take part
        results["evaluated"] = call(site.eval(), maps).detach()
    torch.save(results, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]


def tolerance(dtype):
    if dtype == torch.float64:
        return {"rtol": 1e-6, "atol": 1e-9}
    return {"rtol": 0.02, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 2e-4}


@pytest.mark.parametrize("name", CASES)
def test_processes_match_a_single_process(ranks, name):
    case = CASES[name]
    single = make_site(nn.BatchNorm2d, case)
    num_maps, num_parameters = case.get("maps", 1), len(list(single.parameters()))
    statistics = [f"1.running_{kind}" for kind in ("mean", "std")]  # of each rank's own share
    buffers = [n for n, _ in single.named_buffers()]
    for step in range(STEPS):
        batches = list(make_batches(step, case))
        maps = [torch.cat(own).detach().requires_grad_() for own in zip(*(maps for maps, _ in batches))]
        expected = train(single, maps, torch.cat([grad for _, grad in batches]))
        shares = [rank[name][step] for rank in ranks]
        for i, whole in enumerate(expected):
            parts = [share[i] for share in shares]
            if i < 1 + num_maps:
                actual = torch.cat(parts)
                assert [p.stride() for p in parts] == [torch.empty_like(m[0]).stride() for m, _ in batches]
            elif i < 1 + num_maps + num_parameters:
                actual = sum(parts)
            else:
                actual = parts[0]
                assert torch.equal(*parts) or buffers[i - len(expected)] in statistics
            torch.testing.assert_close(actual, whole, **tolerance(case.get("dtype")))


@pytest.mark.parametrize("name", ["uneven", "empty on one rank"])
def test_second_and_forward_mode_derivatives(ranks, name):
    case = {**CASES[name], "dtype": torch.float64}
    batches = list(make_batches(0, case))
    maps = [torch.cat(own).detach().requires_grad_() for own in zip(*(maps for maps, _ in batches))]
    whole = other_derivatives(make_site(nn.BatchNorm2d, case), maps, torch.cat([g for _, g in batches]))
    shares = zip(*(rank[f"{name}: other derivatives"] for rank in ranks))
    for i, (expected, parts) in enumerate(zip(whole, shares)):
        torch.testing.assert_close(torch.cat(parts) if i <= len(maps) else sum(parts), expected)


def test_a_fused_model(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["any model"], rank["uneven"][0])


def test_process_group_of_one_rank(ranks):
    for rank, batch in zip(ranks, make_batches(0, {})):
        torch.testing.assert_close(rank["alone"], train(make_site(nn.BatchNorm2d, {}), *batch))


def test_evaluation_does_not_synchronize(ranks):
    whole = make_site(nn.BatchNorm2d, {})
    (maps, grad), (others, other_grad) = make_batches(0, {})
    train(whole, [torch.cat([maps[0], others[0]]).detach().requires_grad_()], torch.cat([grad, other_grad]))
    torch.testing.assert_close(ranks[0]["evaluated"], call(whole.eval(), maps).detach())


def test_without_a_process_group_it_is_batch_norm():
    batch, _ = make_batches(0, {})
    torch.testing.assert_close(
        train(make_site(nn.SyncBatchNorm, {}), *batch), train(make_site(nn.BatchNorm2d, {}), *batch)
    )

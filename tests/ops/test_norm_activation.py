"""Norm and activation as one op: against NumPy, and against the single steps."""

import numpy as np
import oracle_activations
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_cases import ADDED_EPS, CONTENTS, EPS, as_numpy, make_case

from pwlu_det.ops import kernels
from pwlu_det.ops.norm_activation import ACTIVATIONS

OP = torch.ops.pwlu_det.norm_activation
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_content = pytest.mark.parametrize("added", CONTENTS)
given_or_not = pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])


def gradients(case, y, seed=1):
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad(y, case.learned, grad.to(y.dtype))


def errors(actual, expected):
    """Relative to the largest value of each tensor."""
    with torch.no_grad():
        return [
            float((a.double() - e.double()).abs().max() / (e.double().abs().max() + 1e-30))
            if a.numel()
            else 0.0
            for a, e in zip(actual, expected, strict=True)
        ]


def assert_like_steps(case, dtype=torch.float64, tolerance=1e-10):
    """Outputs and gradients are those of the single steps in float64, from the same rounded inputs."""
    own = case.leaves(dtype, torch.promote_types(dtype, torch.float32))
    y, _ = own.fused()
    exact = own.leaves(torch.float64)
    expected = exact.steps()
    results = [y, *gradients(own, y)]
    wanted = [expected, *gradients(exact, expected)]
    assert max(errors(results, wanted)) <= tolerance, errors(results, wanted)
    assert [r.dtype for r in results] == [dtype] + [t.dtype for t in own.learned]
    assert y.stride() == case.x.stride() and results[1].stride() == case.x.stride()
    return results


# --- what it computes ---------------------------------------------------------------------------


@given_or_not
@each_content
@every_activation
def test_output_and_gradients_are_those_of_numpy(activation, added, given):
    case = make_case(activation, added, given).leaves(torch.float64)
    function, arrays = as_numpy(case)
    y, _ = case.fused()
    np.testing.assert_allclose(y.detach(), function(*arrays).astype(float), rtol=1e-9, atol=1e-10)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = oracle_activations.gradients(function, arrays, grad.numpy())
    for name, actual, wanted in zip(["x", "weight", "bias"] + [""] * 20, gradients(case, y), expected):
        np.testing.assert_allclose(actual, wanted.astype(float), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("added", CONTENTS)
def test_statistics_are_mean_and_population_variance(added):
    case = make_case("relu", added, shape=(3, 4, 5, 6))
    _, statistics = case.fused()
    maps = [case.x.numpy()] + ([case.added[0].numpy()] if added == "norm" else [])
    expected = [f(m, axis=(0, 2, 3)) for m in maps for f in (np.mean, np.var)]
    np.testing.assert_allclose(statistics, expected, rtol=1e-12)
    assert not statistics.requires_grad
    assert make_case("relu", added, given=True).fused()[1].shape == (0, 3)


TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SMOOTH = ("swish", "acon_c", "acon_b", "meta_acon_pixel", "slaf", "pau")
"""Without kinks: a rounded input cannot change the gradient by much."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("added", CONTENTS)
@given_or_not
@pytest.mark.parametrize("activation", SMOOTH)
def test_dtypes_and_layouts(activation, given, added, memory_format, dtype):
    case = make_case(activation, added, given, (2, 20, 9, 7), memory_format=memory_format)
    assert_like_steps(case, dtype, TOLERANCES[dtype])


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("added", CONTENTS)
@given_or_not
@pytest.mark.parametrize("layer_wise", [False, True])
@pytest.mark.parametrize("activation", ["pwlu", "pau"])
def test_one_function_per_channel_or_layer(activation, layer_wise, given, added, memory_format):
    shape = (2, 9, 11, 13)
    assert_like_steps(make_case(activation, added, given, shape, layer_wise, memory_format), tolerance=1e-11)


@settings(deadline=None, max_examples=60)
@given(
    activation=st.sampled_from(list(ACTIVATIONS)),
    added=st.sampled_from(CONTENTS),
    statistics=st.booleans(),
    layer_wise=st.booleans(),
    batch=st.integers(0, 3),
    channels=st.sampled_from([1, 2, 3, 8, 17, 257]),
    inner=st.sampled_from([(), (1,), (5,), (1, 1), (3, 7), (23, 29), (2, 3, 4), (3000,)]),
    memory_format=st.sampled_from(LAYOUTS),
)
def test_any_shape(activation, added, statistics, layer_wise, batch, channels, inner, memory_format):
    shape = (batch, channels, *inner)
    if batch * int(np.prod(inner)) < 2 and not statistics:
        return  # torch's own batch norm refuses statistics of one value
    case = make_case(activation, added, statistics, shape, layer_wise, memory_format)
    assert_like_steps(case, tolerance=1e-9)


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_pieces_and_chunks(memory_format):
    """More elements in a channel than are processed at once, and more channels than in a block."""
    for shape in ((2, 2, 190, 210), (3, 300, 11, 13), (1, 3, 1, 70001)):
        assert_like_steps(make_case("pwlu", "norm", shape=shape, memory_format=memory_format), tolerance=1e-9)


@pytest.mark.parametrize("weight", [0.0, -1.5, 1e-9])
@each_content
@pytest.mark.parametrize("activation", ["relu", "pwlu", "swish"])
def test_small_zero_and_negative_weights(activation, added, weight):
    case = make_case(activation, added)
    case.norm[0][1] = weight
    assert_like_steps(case)


@each_content
def test_constant_channels_and_single_elements(added):
    case = make_case("swish", added)
    case.x[:, 1] = 7.25
    results = assert_like_steps(case, tolerance=1e-9)
    assert all(r.isfinite().all() for r in results)
    one = make_case("swish", added, shape=(1, 3, 1, 1)).leaves(torch.float64)
    y, statistics = one.fused()
    assert torch.equal(statistics[0], one.x.flatten()) and not statistics[1].any()
    by_x, by_weight, *_ = gradients(one, y)
    assert by_x.abs().max() < 1e-12 and not by_weight.any()  # the output does not depend on x


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_a_large_mean_costs_no_accuracy(memory_format):
    """Also if the first element is far from the others."""
    case = make_case("swish", shape=(2, 3, 40, 50), memory_format=memory_format)
    case.x += 1e3
    case.x[0, :, 0, 0] = 0
    own = case.leaves(torch.float32)
    _, statistics = own.fused()
    wide = own.x.double()
    torch.testing.assert_close(statistics[0].double(), wide.mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(statistics[1].double(), wide.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_values_that_are_not_finite_stay_in_their_channel():
    for value in (float("nan"), float("inf")):
        case = make_case("pwlu", "tensor").leaves(torch.float32)
        with torch.no_grad():
            case.x[0, 1, 2, 3] = value
        y, _ = case.fused()
        grads = gradients(case, y)
        assert y[:, 1].isnan().all() and grads[0][:, 1].isnan().all()
        for tensor in (y, grads[0]):
            assert tensor[:, [0, 2]].isfinite().all()
    case = make_case("swish", "tensor", given=True).leaves(torch.float32)
    with torch.no_grad():
        case.x[0, 1, 2, 3] = float("nan")
    assert case.fused()[0].isnan().sum() == 1


@every_activation
def test_parameters_are_read_at_each_call(activation):
    """Also if they are written in a way that autograd does not see."""
    case = make_case(activation, "norm", given=True).leaves(torch.float32)
    case.fused()
    for tensor in case.tensors[1:]:
        tensor.data += 0.25
    assert_like_steps(case, torch.float32, 1e-4)


# --- how it computes ----------------------------------------------------------------------------


@pytest.mark.skipif(kernels.kernels_in_use() in ("baseline", "plain torch"), reason="plain torch")
@pytest.mark.parametrize("shape", [(2, 3, 190, 210), (2, 40, 60, 60), (1, 1, 300, 300), (2, 300, 20, 20)])
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("layer_wise", [False, True])
@given_or_not
def test_the_bits_do_not_depend_on_the_number_of_threads(shape, memory_format, layer_wise, given):
    case = make_case("pwlu", "norm", given, shape, layer_wise, memory_format).leaves(torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            y, statistics = case.fused()
            results.append([y, statistics, *gradients(case, y)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@each_content
@given_or_not
def test_only_the_inputs_are_saved(added, given):
    case = make_case("pwlu", added, given, (2, 3, 40, 50)).leaves(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        case.fused()
    large = [t for t in saved if t.numel() >= case.x.numel()]
    inputs = [case.x, *case.added[:1]]
    assert sorted(t.data_ptr() for t in large) == sorted(t.data_ptr() for t in inputs)


@every_activation
@each_content
@given_or_not
def test_gradcheck(activation, added, given):
    case = make_case(activation, added, given, (2, 2, 2, 3)).leaves(torch.float64)

    def function(*values):
        return case.with_tensors(values).fused()[0]

    assert torch.autograd.gradcheck(function, case.tensors)


@pytest.mark.parametrize("activation", ["relu", "pwlu", "swish", "pau"])
@each_content
@given_or_not
def test_double_backward(activation, added, given):
    case = make_case(activation, added, given, (2, 2, 2, 2)).leaves(torch.float64)

    def function(*values):
        return case.with_tensors(values).fused()[0]

    assert torch.autograd.gradgradcheck(function, case.tensors)


def test_forward_mode_and_torch_func():
    case = make_case("swish", "tensor", shape=(2, 2, 2, 3))
    function = lambda x: case.with_tensors([x, *case.tensors[1:]]).fused()[0]  # noqa: E731
    steps = lambda x: case.with_tensors([x, *case.tensors[1:]]).steps()  # noqa: E731
    tangent = torch.ones_like(case.x) * torch.arange(3)
    actual = torch.func.jvp(function, (case.x,), (tangent,))
    torch.testing.assert_close(actual, torch.func.jvp(steps, (case.x,), (tangent,)))
    several = torch.stack([case.x, 2 * case.x])
    torch.testing.assert_close(torch.vmap(function)(several), torch.stack(list(map(function, several))))


@pytest.mark.parametrize("activation", ["relu", "pwlu", "apl"])
@each_content
@given_or_not
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_opcheck(activation, added, given, memory_format):
    case = make_case(activation, added, given, memory_format=memory_format).leaves(torch.float32)
    torch.library.opcheck(OP.default, case.arguments())
    norm, full = case.norm, list(case.added)
    if not given:
        statistics = list(case.fused()[1])
        norm = [*norm, *statistics[:2]]
        full += statistics[2:]
    plain = case.with_tensors(case.tensors)
    arguments = [t.detach() for t in [plain.x, *norm, *full, *plain.parameters]]
    x, norm, full = arguments[0], arguments[1:5], arguments[5 : 5 + len(full)]
    backward = torch.ops.pwlu_det.norm_activation_backward.default
    parameters = [p.detach() for p in case.parameters]
    for mask in ((True, True), (True, False), (False, True), (False, False)):
        values = (torch.ones_like(x), x, norm, EPS, full, ADDED_EPS, activation, parameters, not given, mask)
        torch.library.opcheck(backward, values)
        if mask == (True, True):
            every = backward(*values)
        masked = backward(*values)
        for wanted, some, expected in zip((mask[0],) * 3, masked, every):
            assert torch.equal(some, expected) if wanted else some.numel() == 0
        for some, expected in zip(masked[3], every[3]):
            assert torch.equal(some, expected) if mask[1] else some.numel() == 0


def test_torch_compile_and_export():
    case = make_case("pwlu", "norm").leaves(torch.float32)

    def function(*values):
        return case.with_tensors(list(values)).fused()[0]

    y = torch.compile(function, fullgraph=True, backend="aot_eager")(*case.tensors)
    expected = function(*case.tensors)
    assert torch.equal(y, expected)
    assert all(map(torch.equal, gradients(case, y), gradients(case, expected)))

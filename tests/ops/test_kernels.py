"""The compiled kernels pass the tests of the ops, and agree with plain torch in further cases."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pwlu_det.activations import build_activation
from pwlu_det.ops import kernels, kernels_in_use, reference

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

built = pytest.mark.skipif(bool(kernels.FALLBACK_REASON), reason=kernels.FALLBACK_REASON)


def run_python(*arguments, **environment):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("g++"), reason="g++, which builds the kernels, is not installed")
def test_kernels_are_built_if_there_is_a_compiler():
    assert kernels.FALLBACK_REASON in ("", "PWLU_DET_CPU_KERNELS is none")


# This test session itself uses the best kernels that the processor supports.
@built
@pytest.mark.parametrize("other", [k for k in ("avx2", "baseline", "none") if k != kernels_in_use()])
def test_tests_of_the_ops_pass_with_other_kernels(other):
    names = ["pwlu", "robust", "arguments", "output_mask", *(["pointwise"] if other == "none" else [])]
    files = [HERE / f"test_{name}.py" for name in names]
    code, output = run_python("-m", "pytest", *files, PWLU_DET_CPU_KERNELS=other)
    assert code == 0, output[-3000:]


@built
def test_library_contains_the_torch_version_that_it_is_built_for():
    (path,) = (p for s in EXTENSION_SUFFIXES if (p := kernels.PACKAGE / f"_C{s}").exists())
    assert kernels._torch_of(path) == torch.__version__.split("+")[0]


@built
def test_environment_report_names_the_kernels_in_use():
    for wanted, expected in (("none", "plain torch"), ("baseline", "baseline")):
        code, output = run_python("-m", "pwlu_det.collect_env", PWLU_DET_CPU_KERNELS=wanted)
        assert code == 0 and f"CPU kernels              {expected}" in output
    code, output = run_python("-c", "import pwlu_det", PWLU_DET_CPU_KERNELS="fast")
    assert code == 0 and "PWLU_DET_CPU_KERNELS is 'fast'; it must be one of avx512, avx2" in output


def test_missing_or_broken_library_falls_back_with_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "PACKAGE", tmp_path)
    monkeypatch.delenv("PWLU_DET_CPU_KERNELS", raising=False)
    with pytest.warns(UserWarning, match="activations run in plain torch.*are not built"):
        assert "not built" in kernels.load()
    (tmp_path / "_C.cpython-27-other.so").write_bytes(b"")
    with pytest.warns(UserWarning, match="are not built.*; _C.cpython-27-other.so is for another Python"):
        kernels.load()
    (tmp_path / "_C.so").write_bytes(b"not a library")
    with pytest.warns(UserWarning, match=r"plain torch.*_C.so cannot be loaded"):
        kernels.load()
    (tmp_path / "_C.so").write_bytes(b"no library\0pwlu_det kernels for torch 1.2.3\0")
    with pytest.warns(UserWarning, match=r"_C.so is built for torch 1.2.3, but this is torch \d"):
        kernels.load()
    (tmp_path / "_C_failure.txt").write_text("the build failed: no compiler\n")
    with pytest.warns(UserWarning, match="plain torch.*no compiler"):
        assert kernels.load() == "the build failed: no compiler"


def make_case(shape, num_functions, num_intervals, dtype, channels_last=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    left = randn(num_functions) - 2
    right = left + randn(num_functions).abs() * 4 + 0.5
    points = randn(num_functions, num_intervals + 1)
    own = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = [p.to(own) for p in (points, left, right, randn(num_functions), randn(num_functions))]
    x, grad = (randn(*shape).mul(3).to(dtype) for _ in range(2))
    if channels_last:
        x, grad = (t.to(memory_format=torch.channels_last) for t in (x, grad))
    return x, grad, parameters


def assert_agree(x, grad, parameters):
    """Equal up to rounding, except for a few x so close to a knot that they round to its other side."""
    points = parameters[0]
    num_intervals = points.shape[1] - 1
    compute = points.dtype
    unit = torch.finfo(compute).eps
    # u has an error of about N units, and the rise in a bin is up to twice the largest point.
    scale = points.abs().max().double() * (8 + 4 * num_intervals)
    y, expected = torch.ops.pwlu_det.pwlu(x, *parameters), reference.pwlu(x, *parameters)
    assert y.stride() == x.stride()
    difference = (y.double() - expected.double()).abs()
    assert (
        difference <= unit * scale + (4 * unit + torch.finfo(x.dtype).eps) * expected.double().abs()
    ).all()

    gradients = torch.ops.pwlu_det.pwlu_backward(grad, x, *parameters, (True, True))
    expected = reference.pwlu_backward(grad, x, *parameters)
    far = (gradients[0].double() - expected[0].double()).abs() > 2 * torch.finfo(x.dtype).eps * (
        expected[0].double().abs() + grad.double().abs()
    )
    assert far.double().mean() <= 1e-4 * num_intervals
    total = grad.double().abs().sum()
    steepest = expected[0].double().abs().max() / grad.double().abs().max().clamp(min=1e-30)
    for actual, wanted in zip(gradients[1:], expected[1:]):
        bound = 1e-5 * total * (1 + steepest + x.double().abs().max())
        assert ((actual.double() - wanted.double()).abs() <= bound).all()


@built
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    height=st.integers(1, 9),
    width=st.integers(1, 40),
    num_intervals=st.sampled_from([1, 2, 6, 7, 8, 14, 15, 16, 17, 22, 23, 24, 25, 30, 33, 64, 200]),
    dtype=st.sampled_from(DTYPES),
    channels_last=st.booleans(),
    layer_wise=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernels_agree_with_plain_torch(
    batch, channels, height, width, num_intervals, dtype, channels_last, layer_wise, seed
):
    shape = (batch, channels, height, width)
    num_functions = 1 if layer_wise else channels
    x, grad, parameters = make_case(shape, num_functions, num_intervals, dtype, channels_last, seed)
    assert_agree(x, grad, parameters)
    relu, *moments = torch.ops.pwlu_det.pwlu_phase1(x, *parameters)
    expected, *expected_moments = reference.relu_moments(x, num_functions)
    assert torch.equal(relu, expected) and relu.stride() == x.stride()
    for actual, wanted in zip(moments, expected_moments):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


@built
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("layer_wise", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(channels_last, layer_wise):
    x, grad, parameters = make_case(
        (3, 40, 71, 53), 1 if layer_wise else 40, 16, torch.float32, channels_last
    )
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            y = torch.ops.pwlu_det.pwlu(x, *parameters)
            gradients = torch.ops.pwlu_det.pwlu_backward(grad, x, *parameters, (True, True))
            results.append([y, *gradients, *torch.ops.pwlu_det.pwlu_phase1(x, *parameters)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    assert_agree(x, grad, parameters)


@built
@pytest.mark.parametrize(
    "x", [torch.arange(60.0).view(3, 20).T, torch.arange(240.0).view(2, 3, 5, 8)[:, :, 1::2, ::3]]
)
def test_other_strides(x):
    _, grad, parameters = make_case(x.shape, x.shape[1], 16, torch.float32)
    assert not x.is_contiguous()
    expected = reference.pwlu(x, *parameters)
    y = torch.ops.pwlu_det.pwlu(x, *parameters)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert y.stride() == torch.empty_like(x).stride()
    grad_x = torch.ops.pwlu_det.pwlu_backward(grad, x, *parameters, (True, True))[0]
    torch.testing.assert_close(grad_x, reference.pwlu_backward(grad, x, *parameters)[0], rtol=1e-4, atol=1e-5)


@built
@pytest.mark.skipif(
    kernels_in_use() in ("baseline", "plain torch"), reason="this limit is that of the kernels"
)
def test_maximum_number_of_parameters_per_channel():
    x, many = torch.randn(1, 2, 5), torch.rand(2, 64) / 64
    torch.testing.assert_close(
        torch.ops.pwlu_det.slaf(x, many),
        sum(many[:, j, None] * x**j for j in range(64)),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(
        ValueError, match="slaf: there are 65 parameters for each channel; at most 64 are allowed"
    ):
        torch.ops.pwlu_det.slaf(x, torch.rand(2, 65))


SCHEMAS = """
import torch, pwlu_det.ops
schemas = {str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("pwlu_det::")}
print(*sorted(s for s in schemas if "cpu_kernels" not in s), sep="\\n")
"""
WITHOUT_PYTHON = """
import sys, torch
torch.ops.load_library(sys.argv[1])
model, (x, y) = torch.jit.load(sys.argv[2]), torch.load(sys.argv[3])
assert torch.equal(model(x), y) and "pwlu_det" not in sys.modules
"""


@built
def test_library_defines_the_same_ops_as_python():
    outputs = [run_python("-c", SCHEMAS, PWLU_DET_CPU_KERNELS=k) for k in (kernels_in_use(), "none")]
    assert outputs[0] == outputs[1] and outputs[0][1].count("pwlu_det::") > 30


@built
def test_library_runs_a_traced_model_without_this_package(tmp_path):
    names = ("pwlu", "acon_c", "frelu")
    model = torch.nn.Sequential(*(build_activation(name, 3) for name in names)).eval()
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        torch.jit.trace(model, x).save(tmp_path / "model.pt")
        torch.save((x, model(x)), tmp_path / "example.pt")
    (library,) = (p for s in EXTENSION_SUFFIXES if (p := kernels.PACKAGE / f"_C{s}").exists())
    script = tmp_path / "script.py"  # in a folder without this package
    script.write_text(WITHOUT_PYTHON)
    code, output = run_python(
        "-P", script, library, tmp_path / "model.pt", tmp_path / "example.pt", PYTHONPATH=""
    )
    assert code == 0, output

"""Cases of Funnel ReLU's ops, each by itself, for :mod:`cuda_emulation`, and their expected results."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracle_activations as oracle
import torch
from cuda_emulation import DTYPES, Case, as_numpy, assert_near

OPS = INFERENCE, INFERENCE_BACKWARD, CONVOLVE, NORMALISE, NORM_SUMS, BACKWARD = range(6)
PARTS = {INFERENCE_BACKWARD: (6, 7), BACKWARD: (8, 9)}
"""For each of these ops, two that only the emulation has: the gradient of x, and those of the convolution."""
ONLY_X, ONLY_CONVOLUTION = zip(*PARTS.values())
EPS = 1e-5


@dataclasses.dataclass
class FreluCase(Case):
    """Parameters: weight, bias, the norm's mean, var, weight and bias, and the norm's mean gradients."""

    saved: torch.Tensor = None
    """The tensor that forward saved for backward: the convolution's output, or y in inference."""

    def numbers(self, op: int) -> list[int]:
        return [*self.x.shape, int(self.channels_last), DTYPES[self.x.dtype], op]

    def buffers(self, op: int) -> list[tuple[torch.Tensor, int]]:
        channels = self.x.shape[1]
        like_x = [] if op == NORM_SUMS or op in ONLY_CONVOLUTION else [self.output()]
        others = {CONVOLVE: [channels, channels], NORM_SUMS: [2 * channels]}.get(op, [])
        if op in PARTS or op in ONLY_CONVOLUTION:
            others = [9 * channels, channels]
        others = [(torch.full((n,), torch.nan, dtype=self.parameters[0].dtype), 0) for n in others]
        saved = self.memory(self.saved), self.offsets[1] * self.x.element_size()
        return [*self.inputs(), saved, *like_x, *others]

    def results(self, op: int, buffers: list[torch.Tensor]) -> list[torch.Tensor]:
        """``[y]``, the sums ``[2, C]``, ``[conv, mean, var]``, or the gradients of x, weight and bias."""
        outputs = buffers[len(self.parameters) + 3 :]
        if op == NORM_SUMS:
            return [outputs[0].view(2, -1)]
        like_x = [] if op in ONLY_CONVOLUTION else [self.from_memory(outputs.pop(0))]
        return [*like_x, *outputs]


def make_case(shape, dtype=torch.float32, channels_last=False, offsets=(0, 0, 0), seed=0) -> FreluCase:
    """``saved`` is random, unrelated to the convolution, since each op is compared with its own equation.

    No element of it, nor of the norm's output, is so close to x that rounding could change which is larger.
    """
    random = torch.Generator().manual_seed(seed)
    channels = shape[1]
    x, grad, saved = (torch.randn(shape, generator=random).to(dtype) for _ in range(3))
    vectors = torch.randn(5, channels, generator=random)
    weight, means = (torch.randn(size, generator=random) for size in ((channels, 9), (2, channels)))
    bias, mean, spread, gamma, beta = vectors
    parameters = [weight, bias, mean, spread**2 + 0.1, gamma, beta, means / 10]
    case = FreluCase(x, grad, parameters, channels_last, offsets, saved)
    for near in (np.abs(normed(case)[1] - as_numpy(x)) < 1e-3, np.abs(as_numpy(saved) - as_numpy(x)) < 1e-3):
        case.saved = torch.where(torch.from_numpy(near), case.saved + 0.25, case.saved)
    return case


def run_op(case: FreluCase, op: int, device: str) -> list[torch.Tensor]:
    """Run the registered torch op on a device."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    x, grad, saved = (t.to(device, memory_format=layout) for t in (case.x, case.grad, case.saved))
    weight, bias, *norm, means = (p.to(device) for p in case.parameters)
    weight, ops, mask = weight.view(-1, 1, 3, 3), torch.ops.pwlu_det, (True, True)
    results = {
        INFERENCE: lambda: ops.frelu_inference(x, weight, bias),
        INFERENCE_BACKWARD: lambda: ops.frelu_inference_backward(grad, x, saved, weight, bias, mask),
        CONVOLVE: lambda: ops.frelu_convolve(x, weight, bias),
        NORMALISE: lambda: ops.frelu_normalise(x, saved, *norm, EPS),
        NORM_SUMS: lambda: ops.frelu_norm_sums(grad, x, saved, *norm, EPS),
        BACKWARD: lambda: ops.frelu_convolve_backward(
            grad, x, saved, *norm[:2], weight, bias, *norm[2:], EPS, means, mask
        ),
    }[op]()
    results = [results] if isinstance(results, torch.Tensor) else [*results]
    for result in results:
        wide = result.shape != x.shape
        assert result.dtype == (bias if wide else x).dtype
        assert wide or result.stride() == torch.empty_like(x).stride()
    return [result.cpu() for result in results]


# --- the equations in float64 ---------------------------------------------------------------------------


def arrays(case):
    return [as_numpy(p) for p in case.parameters]


def filters(case):
    return as_numpy(case.parameters[0]).reshape(-1, 1, 3, 3), as_numpy(case.parameters[1])


def by_channel(values):
    return values.reshape(-1, 1, 1)


def normed(case):
    """``saved``, normalized by mean and variance, and the norm's output."""
    _, _, mean, var, gamma, beta, _ = (by_channel(p) for p in arrays(case))
    normal = (as_numpy(case.saved) - mean) / np.sqrt(var + EPS)
    return normal, normal * gamma + beta


def expected_results(case: FreluCase, op: int) -> list[np.ndarray]:
    for whole, (of_x, of_convolution) in PARTS.items():
        if op in (of_x, of_convolution):
            return expected_results(case, whole)[slice(1) if op == of_x else slice(1, None)]
    x, g, saved = (as_numpy(t) for t in (case.x, case.grad, case.saved))
    weight, bias = filters(case)
    normal, line = normed(case)
    if op == INFERENCE:
        return [np.maximum(x, oracle.depthwise(x, weight, bias))]
    if op == CONVOLVE:
        return [oracle.depthwise(x, weight, bias)]  # check() computes the statistics from the rounded output
    if op == NORMALISE:
        return [np.maximum(x, line)]
    if op == INFERENCE_BACKWARD:
        lost = saved > x
        return [*oracle.depthwise_gradients(np.where(lost, 0, g), np.where(lost, g, 0), x, weight)]
    to_norm = np.where(line > x, g, 0)
    if op == NORM_SUMS:
        return [np.stack([(to_norm * normal).sum((0, 2, 3)), to_norm.sum((0, 2, 3))])]
    _, _, _, var, gamma, _, means = arrays(case)
    centered = to_norm - by_channel(means[1]) - normal * by_channel(means[0])
    to_conv = centered * by_channel(gamma / np.sqrt(var + EPS))
    return [*oracle.depthwise_gradients(np.where(line > x, 0, g), to_conv, x, weight)]


def check(case: FreluCase, op: int, results: list[torch.Tensor]) -> None:
    """Compare every element of the results with the equations."""
    expected = expected_results(case, op)
    if op == CONVOLVE:
        conv, mean, var = results
        saved = as_numpy(conv)
        unit = torch.finfo(mean.dtype).eps
        assert_near(mean, saved.mean((0, 2, 3)), 4 * unit * (1 + np.abs(saved).max((0, 2, 3))), "mean")
        spread = saved.var((0, 2, 3)) * (1000 if case.x.dtype == torch.float64 else 16)  # sums are in double
        assert_near(var, saved.var((0, 2, 3)), unit * (1e-2 + spread), "var")
        results = [conv]
    unit = torch.finfo(case.parameters[0].dtype).eps
    weight, _ = filters(case)
    _, line = normed(case)
    steepest = 1 + np.abs(line).max() + (case.parameters[4].abs() / case.parameters[3].sqrt()).max().item()
    size = 100 * (1 + np.abs(as_numpy(case.grad)).max()) * steepest * (1 + np.abs(weight).max())
    for actual, wanted in zip(results, expected):
        info = torch.finfo(actual.dtype)
        # Sums are computed in float over a few elements, then in double.
        terms = 1 if actual.shape == case.x.shape else np.sqrt(case.x[:, 0].numel())
        bound = info.eps * (np.abs(wanted) + info.smallest_normal) + unit * size * terms
        assert_near(actual.reshape(wanted.shape), wanted, bound, f"op {op}")

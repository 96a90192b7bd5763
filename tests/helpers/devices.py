"""Devices to test on."""

import pytest
import torch

from pwlu_det.ops import kernels

on_gpu = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        pytest.mark.skipif(bool(kernels.CUDA_FALLBACK_REASON), reason=kernels.CUDA_FALLBACK_REASON),
    ],
)
"""The parameter "cuda", for tests that a GPU and the CUDA kernels allow."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from detectors import STOCK
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.errors import CheckpointError


def msra_name(key: str) -> str:
    """Name in detectron2's MSRA .pkl files of a tensor of a stock ResNet."""
    stage, *rest = key.split(".")
    suffix = {"conv": "_w", "norm.weight": "_bn_s", "norm.bias": "_bn_b"}
    kind = suffix[".".join(rest[-2:])] if "norm" in rest else suffix["conv"]
    if stage == "stem":
        return "conv1_w" if kind == "_w" else f"res_conv1{kind}"
    branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}[rest[1]]
    return f"{stage}_{rest[0]}_{branch}{kind}"


@pytest.mark.parametrize("activation", ["relu", "pwlu"])
def test_stock_resnet_50_in_msra_layout_loads(cfg, tmp_path, activation):
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.BACKBONE.NAME = STOCK["resnet"]
    stock = build_backbone(cfg, ShapeSpec(channels=3))
    arrays = {"fc1000_w": np.zeros((1000, 2048), np.float32), "fc1000_b": np.zeros(1000, np.float32)}
    for key, value in stock.state_dict().items():
        if "running" not in key:  # these files store only the scale and shift of a norm
            value += 0.01 * torch.randn_like(value)
            arrays[msra_name(key)] = value.numpy().copy()
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps(arrays, protocol=2))

    cfg.MODEL.ACTIVATION.NAME = activation
    cfg.MODEL.BACKBONE.NAME = "build_act_resnet_backbone"
    converted = build_backbone(cfg, ShapeSpec(channels=3))
    checkpointer = Checkpointer(converted)
    checkpointer.load(str(file))
    loaded = converted.state_dict()
    for key, value in stock.state_dict().items():
        if "running" not in key:
            assert torch.equal(loaded[key], value), key
    activations = {key for key in loaded if ".act" in key}
    assert activations <= set(checkpointer.incompatible.missing_keys)
    assert all("norm.running" in k for k in set(checkpointer.incompatible.missing_keys) - activations)
    if activation == "relu":
        x = torch.randn(1, 3, 64, 64)
        for a, b in zip(converted(x).values(), stock(x).values()):
            # FrozenBN sets the variance to 1 if the file has none, but to 1 - 1e-5 when it is built
            assert (a - b).abs().max() < 1e-3 * b.abs().max()


class Harmful:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pth"])
def test_file_that_would_run_code_is_rejected(cfg, tmp_path, name):
    mark = tmp_path / "ran"
    content = {"stem.conv1.weight": Harmful(mark)}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"the file refers to .*mkdir; only"):
        Checkpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / name))
    assert not mark.exists()


def test_small_pickle_uses_little_memory(tmp_path):
    """The pickle memoizes an object at index 2^24; a memo table of that length would take 256 MB."""
    path = tmp_path / "memo.pkl"
    path.write_bytes(b"\x80\x02}r\x00\x00\x00\x01.")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="it contains no tensors"):
            read_checkpoint(str(path))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()

"""What a file of weights must contain for its backbone to be exported."""

import pytest
import torch
from detectors import build, set_detector

from pwlu_det import CheckpointError
from pwlu_det.checkpoint.export import export_backbone

CONV = "backbone.bottom_up.res3.0.conv1.weight"


@pytest.fixture
def state(cfg):
    set_detector(cfg, "retinanet")
    return build(cfg).state_dict()


def export(cfg, tmp_path, state):
    torch.save({"model": state}, tmp_path / "weights.pth")
    export_backbone(cfg, str(tmp_path / "weights.pth"), str(tmp_path / "backbone.pth"))
    return torch.load(tmp_path / "backbone.pth", weights_only=True)["model"]


@pytest.mark.parametrize("shape", [(1,), (64, 64, 3, 3), None])
def test_tensor_that_is_missing_or_has_another_shape_is_an_error(cfg, tmp_path, state, shape):
    expected = export(cfg, tmp_path, state)[CONV.removeprefix("backbone.bottom_up.")]
    assert torch.equal(expected, state[CONV])
    (tmp_path / "backbone.pth").unlink()
    if shape is None:
        del state[CONV]
    else:
        state[CONV] = torch.zeros(shape)
    message = f"1 tensors are missing or have the wrong shape; the first is {CONV}"
    with pytest.raises(CheckpointError, match=message):
        export(cfg, tmp_path, state)
    assert not (tmp_path / "backbone.pth").exists()


def test_heads_need_not_fit(cfg, tmp_path, state):
    state = {key: value for key, value in state.items() if key.startswith("backbone.")}
    state["head.cls_score.bias"] = torch.zeros(1)
    assert len(export(cfg, tmp_path, state)) == len(state) - 1

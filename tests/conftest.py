import pytest
from detectron2.config import get_cfg

import pwlu_det


@pytest.fixture
def cfg():
    """detectron2's defaults and ours, on the CPU."""
    cfg = get_cfg()
    pwlu_det.add_pwlu_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return cfg

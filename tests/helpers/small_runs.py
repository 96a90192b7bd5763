"""Short runs of the quickstart: 8 iterations, with the switch to phase II at iteration 4."""

import shutil
from pathlib import Path

from pwlu_det.config import load_config

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart"
SMALL = [
    *("DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 3),
    *(
        "MODEL.ACTIVATION.PWLU.PHASE1_ITERS",
        4,
        "MODEL.FPN.OUT_CHANNELS",
        16,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
        50,
    ),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
]


def make_cfg(folder, *options, detector="retinanet", activation="pwlu"):
    options = [*SMALL, "OUTPUT_DIR", folder, "MODEL.ACTIVATION.NAME", activation, *options]
    cfg = load_config(str(QUICKSTART / f"{detector}_R_18_FPN_digits_pwlu.yaml"), list(map(str, options)))
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    return cfg


def cut(whole, folder, iteration):
    """A copy of a run with only the checkpoint written after ``iteration``."""
    folder.mkdir()
    shutil.copy(whole / f"model_{iteration:07d}.pth", folder)
    (folder / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")
    return folder

#!/usr/bin/env python
"""Train an image classifier, and export its backbone for detectors. Arguments are those of train_net.py.

The backbone is written to backbone.pth in OUTPUT_DIR, for the MODEL.WEIGHTS of a detector.
"""

from __future__ import annotations

import os

import train_net
from detectron2.utils import comm

from pwlu_det.checkpoint.export import export_backbone


def train(args, cfg, notes):
    results = train_net.train(args, cfg, notes)
    if comm.is_main_process():
        model, backbone = (os.path.join(cfg.OUTPUT_DIR, name) for name in ("model_final.pth", "backbone.pth"))
        export_backbone(cfg, model, backbone)
        print(f"Exported backbone: {backbone}")
    return results


if __name__ == "__main__":
    train_net.invoke_main(train)

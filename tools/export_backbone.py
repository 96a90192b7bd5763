#!/usr/bin/env python
"""Export the backbone of a trained detector for other detectors, or to run it without this package."""

from __future__ import annotations

import argparse

from pwlu_det.config import load_config
from pwlu_det.errors import PwluDetError
from pwlu_det.export import SUFFIXES, export_model
from pwlu_det.preflight import check_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the trained detector")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its checkpoint")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="the .pth, .onnx or .pt2 file to write"
    )
    parser.add_argument(
        "--format",
        default="d2",
        choices=["d2", *SUFFIXES],
        help="d2 for MODEL.WEIGHTS; ONNX; torch.export; or AOTInductor, which needs a C++ compiler",
    )
    parser.add_argument(
        "--heads", action="store_true", help="export a RetinaNet up to its logits and box deltas (not d2)"
    )
    parser.add_argument(
        "--bottom-up",
        action="store_true",
        help="export only the ResNet, without the FPN: for detectors with another FPN or without one",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    args = parser.parse_args()
    try:
        cfg = load_config(args.config_file, args.opts)
        check_config(cfg)
        difference = export_model(
            cfg, args.weights, args.output, args.format, heads=args.heads, bottom_up=args.bottom_up
        )
    except PwluDetError as error:
        parser.error(str(error))
    print(f"Backbone written to {args.output}; largest difference when it was run: {difference:.2g}")


if __name__ == "__main__":
    main()

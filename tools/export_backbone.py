#!/usr/bin/env python
"""Export the backbone of a trained detector to a file for the MODEL.WEIGHTS of other detectors."""

from __future__ import annotations

import argparse

from pwlu_det.checkpoint.export import export_backbone
from pwlu_det.config import load_config
from pwlu_det.errors import PwluDetError
from pwlu_det.preflight import check_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the trained detector")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .pth file to write")
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
        export_backbone(cfg, args.weights, args.output, bottom_up=args.bottom_up)
    except PwluDetError as error:
        parser.error(str(error))
    print(f"Backbone written to {args.output}")


if __name__ == "__main__":
    main()

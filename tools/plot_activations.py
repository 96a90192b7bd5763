#!/usr/bin/env python
"""Draw the PWLUs that a checkpoint holds."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pwlu_det.analysis.plots import plot_pwlus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="a .pth checkpoint or exported backbone"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the picture to write, e.g. a .png")
    args = parser.parse_args()
    if not Path(args.weights).is_file():
        parser.error(f"--weights: there is no file {args.weights}")
    state = torch.load(args.weights, map_location="cpu", weights_only=True)["model"]
    try:
        plot_pwlus(state, Path(args.output))
    except ValueError as error:
        parser.error(f"--weights {args.weights}: {error}")
    print(f"Picture written to {args.output}")


if __name__ == "__main__":
    main()

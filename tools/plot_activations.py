#!/usr/bin/env python
"""Draw the PWLUs that a checkpoint holds."""

from __future__ import annotations

import argparse

from pwlu_det.analysis.plots import plot_pwlus
from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.errors import PwluDetError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="a .pth checkpoint or exported backbone"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the picture to write, e.g. a .png")
    args = parser.parse_args()
    try:
        state = read_checkpoint(args.weights)["model"]
    except PwluDetError as error:
        parser.error(f"--weights {error}")
    try:
        plot_pwlus(state, args.output)
    except ValueError as error:
        parser.error(f"--weights {args.weights}: {error}")
    except OSError as error:
        parser.error(f"--output {args.output} cannot be written: {error}")
    print(f"Picture written to {args.output}")


if __name__ == "__main__":
    main()

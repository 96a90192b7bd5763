#!/usr/bin/env python
"""Plot the learned PWLUs of a checkpoint, or of several checkpoints of a run."""

from __future__ import annotations

import argparse

from pwlu_det.analysis.plots import plot_pwlus
from pwlu_det.analysis.snapshots import read_snapshots
from pwlu_det.errors import PwluDetError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights",
        required=True,
        nargs="+",
        metavar="FILE",
        help="a checkpoint or an exported backbone, or several checkpoints of one run, in the order to plot",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="the plot to write, e.g. a .png; several checkpoints give a strip, or an animation in a .gif",
    )
    parser.add_argument(
        "--sites",
        nargs="+",
        default=(),
        metavar="NAME",
        help="the sites to plot, e.g. stem.act1 res2.0.act2 (default: a few from the first to the last)",
    )
    args = parser.parse_args()
    try:
        snapshots = read_snapshots(args.weights)
    except PwluDetError as error:
        parser.error(f"--weights {error}")
    try:
        plot_pwlus(snapshots, args.output, args.sites)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--output {args.output} cannot be written: {error}")
    print(f"Plot written to {args.output}")


if __name__ == "__main__":
    main()

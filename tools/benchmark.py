#!/usr/bin/env python
"""Benchmark activations, alone ("op") or in models ("model"), and print Markdown tables."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from pathlib import Path

import torch

from pwlu_det.benchmark.suites import LAYOUTS, Sites, model_tables, op_tables
from pwlu_det.benchmark.table import header
from pwlu_det.checkpoint.atomic import atomic_writer
from pwlu_det.ops.kernels import find_misuse

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SITES = {
    "coco": Sites("coco", str(CONFIGS / "coco/retinanet_R_50_FPN_3x_relu.yaml"), 2, 800, 1344),
    "demo": Sites("demo", str(CONFIGS / "quickstart/retinanet_R_18_FPN_digits_relu.yaml"), 4, 96, 96),
}
DTYPES = ("float32", "float64", "bfloat16", "float16")

# With these, glibc reuses freed blocks: it allocates none by mmap and returns none to the system.
WARM_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
# Otherwise torch's profiler, which measures memory, logs its start and stop for every row.
QUIET = {"KINETO_LOG_LEVEL": "6", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: folder {args.output.parent} does not exist")
    warm = args.memory == "warm" and args.device == "cpu"
    if warm and platform.libc_ver()[0] != "glibc":
        parser.error("--memory warm requires glibc, which this system does not have; use fresh")
    restart_with({**QUIET, **(WARM_MEMORY if warm else {})})
    if find_misuse():
        parser.error(find_misuse())
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no GPU on this machine; use cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    tables = op_tables(args) if args.command == "op" else model_tables(args)
    texts = [header(shlex.join(["tools/benchmark.py", *sys.argv[1:]]), args.memory)]
    print(texts[0], flush=True)
    try:
        for text in tables:
            print(text, flush=True)
            texts.append(text)
    except ValueError as error:  # an argument that is checked only by the registry or a config
        parser.error(str(error))
    if args.output:
        try:
            with atomic_writer(str(args.output)) as f:
                f.write("\n".join(texts).encode())
        except OSError as error:
            parser.error(f"--output {args.output} cannot be written: {error}")


def build_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    common.add_argument(
        "--threads", type=positive_int, metavar="N", help="torch's CPU threads (default: torch's choice)"
    )
    common.add_argument(
        "--memory",
        choices=("warm", "fresh"),
        default="warm",
        help="CPU memory: reuse freed memory, so that page faults are not timed (warm), or leave the "
        "allocator as it is (fresh) (default: warm)",
    )
    common.add_argument(
        "--seconds",
        type=seconds,
        default=1.0,
        help="time limit for warming up, and again for measuring, per row and run (default: 1)",
    )
    common.add_argument(
        "--rounds", type=rounds, default=500, help="maximum number of rounds, at least 2 (default: 500)"
    )
    common.add_argument("--output", type=Path, metavar="FILE", help="also write the tables to this file")

    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    op = commands.add_parser(
        "op",
        parents=[common],
        help="activations on one tensor",
        description="Forward (as in inference), forward + backward, and backward of every activation on one "
        "tensor, and for comparison PWLU without its kernels and third-party packages, if installed.",
    )
    op.add_argument(
        "--shapes",
        type=shapes,
        default="demo",
        metavar="coco|demo|B,C,H,W",
        help="the sites of R-50-FPN for 2 images of 800 x 1344 (coco), those of the quickstart's R-18-FPN "
        "for 4 images of 96 x 96 (demo, the default), or one shape",
    )
    op.add_argument("--layout", choices=LAYOUTS, default="contiguous", help="(default: contiguous)")
    op.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: float32)")
    op.add_argument(
        "--num-intervals", type=positive_int, default=16, metavar="N", help="intervals of PWLU (default: 16)"
    )
    op.add_argument("--contenders", nargs="+", default=(), metavar="NAME", help="only these rows")
    op.add_argument(
        "--baseline",
        default="torch.relu",
        metavar="NAME",
        help="row to which ratios are computed (default: torch.relu)",
    )

    model = commands.add_parser(
        "model",
        parents=[common],
        help="models",
        description="The training step (forward, losses, backward, optimizer) and inference of models, by "
        "activation, with random weights and synthetic images. --network takes those of the paper's Table 4.",
    )
    model.add_argument("--config-file", nargs="+", default=[], metavar="FILE", help="configs of detectors")
    model.add_argument(
        "--network", nargs="+", default=[], metavar="NAME", help="classifiers: resnet18, mobilenet_v3_small"
    )
    model.add_argument("--activations", nargs="+", default=["pwlu"], metavar="NAME", help="(default: pwlu)")
    model.add_argument(
        "--both",
        action="store_true",
        help="each activation also with its norms computed apart, and ReLU also fused with its norms",
    )
    model.add_argument(
        "--batch", type=positive_int, help="number of images (default: 2 for a detector, 64 for a classifier)"
    )
    model.add_argument(
        "--image-size",
        type=positive_int,
        nargs=2,
        metavar=("H", "W"),
        help="(default: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST of the config; 224 224 for a classifier)",
    )
    model.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    return parser


def positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return number


def rounds(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{text} is too few: quartiles need at least 2")
    return number


def shapes(text: str) -> Sites | tuple[int, ...]:
    if text in SITES:
        return SITES[text]
    sizes = text.split(",")
    if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {' nor '.join(SITES)} nor four sizes such as 2,256,100,168"
        )
    return tuple(map(int, sizes))


def restart_with(variables: dict[str, str]) -> None:
    """Restart this process unless these variables are set: they are read only when it starts."""
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Train the quickstart RetinaNet with PWLU, evaluate it, export its backbone, and print what to try next."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="output/demo", help="output folder")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    args = parser.parse_args()
    output = Path(args.output)
    model, backbone = output / "model_final.pth", output / "backbone.pth"

    # Quoted, or detectron2 would read a folder called "1" or "None" as a number or None.
    run("train_net.py", "--config-file", CONFIG, "OUTPUT_DIR", repr(str(output)), *args.opts)
    run("export_backbone.py", "--config-file", CONFIG, "--weights", model, "--output", backbone)

    config = os.path.relpath(CONFIG)
    train = f"{os.path.relpath(sys.executable)} {os.path.relpath(TOOLS / 'train_net.py')} --config-file"
    relu, mask_rcnn = config.replace("pwlu", "relu"), config.replace("retinanet", "mask_rcnn")
    print(
        f"""
Trained model:     {model}
Exported backbone: {backbone}
Log and curves:    {output / "log.txt"} and {output / "metrics.json"}

Try next:
  {train} {config} --eval-only MODEL.WEIGHTS {model}
  {train} {config} MODEL.WEIGHTS {backbone} OUTPUT_DIR output/from_backbone
  {train} {relu} OUTPUT_DIR output/relu
  {train} {mask_rcnn} OUTPUT_DIR output/mask_rcnn
"""
    )
    print(f"box AP50 = {last_ap50(output / 'metrics.json'):.2f}")


def run(tool: str, *arguments) -> None:
    done = subprocess.run([sys.executable, str(TOOLS / tool), *map(str, arguments)])
    if done.returncode:  # the tool has printed why
        sys.exit(done.returncode)


def last_ap50(metrics: Path) -> float:
    """The last box AP50 in a run's metrics file, in percent."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [line["bbox/AP50"] for line in lines if "bbox/AP50" in line][-1]


if __name__ == "__main__":
    main()

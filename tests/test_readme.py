"""The README's script and commands are the ones that work."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CONFIG = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"


def test_a_script_built_on_default_trainer_gets_both_phases(run_tool, tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "train_net.py"
    file.write_text(script)
    overrides = ("SOLVER.MAX_ITER", 4, "MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 2, "SOLVER.CHECKPOINT_PERIOD", 1)
    overrides += ("DATASETS.TEST", "()", "SOLVER.WARMUP_ITERS", 0, "MODEL.ACTIVATION.LR_FACTOR", 2.0)
    output = run_tool(file, "--config-file", CONFIG, "OUTPUT_DIR", tmp_path, *overrides)
    assert "realigned 18 sites at iteration 2" in output

    checkpoints = [torch.load(tmp_path / f"model_{i:07d}.pth", weights_only=True) for i in range(4)]
    key = "backbone.bottom_up.res3.0.act1."
    assert [int(c["model"][key + "phase"]) for c in checkpoints] == [1, 1, 2, 2]
    points = [c["model"][key + "points"] for c in checkpoints]
    assert torch.equal(points[0], points[1]) and not torch.equal(points[2], points[3])
    groups = checkpoints[-1]["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert [(g["initial_lr"], g["weight_decay"]) for g in groups if g["weight_decay"] == 0] == [
        (0.04, 0),
        (0.02, 0),
    ]


def test_every_file_and_make_target_that_is_named_is_there():
    for name in re.findall(r"(?:configs|tools|docs)/[\w./-]+\.\w+", README):
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

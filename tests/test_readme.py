"""The code and commands in the README work."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CONFIG = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
CUSTOM_ACTIVATION, SCRIPT, CUSTOM_MAPPER, CUSTOM_TRAINER, ANY_MODEL = re.findall(
    r"```python\n(.*?)```", README, re.DOTALL
)
SHORT = ("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.WARMUP_ITERS", 0, "DATASETS.TEST", "()")


def run_script(run_tool, folder, text, config, *overrides):
    file = folder / "train_net.py"
    file.write_text(text)
    output = run_tool(file, "--config-file", config, "OUTPUT_DIR", folder, *SHORT, *overrides)
    return output, [torch.load(folder / f"model_{i:07d}.pth", weights_only=True) for i in range(4)]


@pytest.mark.parametrize("trainer", ["pwlu_det.Trainer", "custom mapper", "custom trainer"])
def test_script_trains_in_both_phases(run_tool, tmp_path, trainer):
    custom = {"custom mapper": CUSTOM_MAPPER, "custom trainer": CUSTOM_TRAINER}.get(trainer, "")
    script = SCRIPT.replace("import pwlu_det\n", f"import pwlu_det\n{custom}")
    if custom:
        script = script.replace("pwlu_det.Trainer(cfg)", "MyTrainer(cfg)")
    overrides = ("MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 2, "MODEL.ACTIVATION.LR_FACTOR", 2.0)
    output, checkpoints = run_script(run_tool, tmp_path, script, CONFIG, *overrides)
    assert "realigned 18 sites at iteration 2" in output

    key = "backbone.bottom_up.res3.0.act1."
    assert [int(c["model"][key + "phase"]) for c in checkpoints] == [1, 1, 2, 2]
    points = [c["model"][key + "points"] for c in checkpoints]
    assert torch.equal(points[0], points[1]) and not torch.equal(points[2], points[3])
    groups = checkpoints[-1]["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert [(g["initial_lr"], g["weight_decay"]) for g in groups if g["weight_decay"] == 0] == [
        (0.04, 0),
        (0.02, 0),
    ]
    exact = "ExactResume" in checkpoints[-1]["trainer"]["hooks"]
    assert exact == ("CPU kernels" in output) == (trainer != "custom trainer")


def test_custom_activation_is_trained(run_tool, tmp_path):
    (tmp_path / "my_activations.py").write_text(CUSTOM_ACTIVATION)
    (config,) = (text for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "BOUNDED" in text)
    (tmp_path / "own.yaml").write_text(f"_BASE_: {CONFIG}\n{config}")
    script = SCRIPT.replace("import pwlu_det\n", "import my_activations\nimport pwlu_det\n")
    overrides = ("MODEL.BACKBONE.NAME", "build_act_retinanet_resnet_fpn_backbone")  # as in the quickstart
    _, checkpoints = run_script(run_tool, tmp_path, script, tmp_path / "own.yaml", *overrides)
    bound = checkpoints[-1]["model"]["backbone.bottom_up.res3.0.act1.bound"]
    assert (bound != -0.5).any() and (bound - -0.5).abs().max() < 0.5


def test_every_file_and_make_target_in_the_readme_exists():
    for name in re.findall(r"(?:configs|tools|docs|pwlu_det)/[\w./-]+\.\w+", README):
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_any_model():
    variables = {}
    exec(ANY_MODEL, variables)
    assert len(variables["report"].replaced) == 33
    # In squeeze-and-excitation blocks.
    assert len(variables["report"].kept) == 16
    assert all("min_map_size" in site.reason for site in variables["report"].kept)

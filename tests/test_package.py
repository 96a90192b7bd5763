"""The contents of the distributions; and without detectron2, ops and activations work."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_DETECTRON2 = """
import importlib.util
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("detectron2", "fvcore", "pycocotools", "cv2", "PIL", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "detectron2" else find_spec(name, *a)
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", WITHOUT_DETECTRON2 + code], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_ops_and_activations_need_only_torch():
    code, output = run(
        """
import torch
import pwlu_det
from pwlu_det.ops import pwlu
activation = pwlu_det.build_activation("pwlu", 3)
x = torch.randn(2, 3, 4)
assert torch.allclose(activation(x), x.relu(), atol=1e-6)
assert torch.equal(pwlu(x, *activation.parameters()), activation(x))
layers = torch.nn.Sequential(torch.nn.Conv1d(3, 3, 1), torch.nn.SiLU())
assert pwlu_det.TwoPhase
model, report = pwlu_det.convert_model(layers, "pwlu", x)
assert isinstance(model[1], pwlu_det.PWLU) and not report.kept
"""
    )
    assert code == 0, output


def test_names_that_need_detectron2_raise_a_clear_error():
    code, output = run("import pwlu_det\npwlu_det.Trainer")
    assert code == 1
    assert (
        "ImportError: pwlu_det.Trainer needs detectron2, which is not installed. Install it with: pip"
        in output
    )
    code, output = run("import pwlu_det\npwlu_det.nonsense")
    assert code == 1 and "has no attribute 'nonsense'" in output


def test_every_public_name_exists():
    import pwlu_det

    for name in pwlu_det.__all__:
        assert getattr(pwlu_det, name) is not None


def test_sdist_contains_all_sources_and_the_wheel_contains_py_typed(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "pwlu_det", source / "pwlu_det", ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, source)
    expected = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    setup = [sys.executable, "setup.py", "-q"]
    subprocess.run([*setup, "sdist"], cwd=source, check=True, capture_output=True)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        found = {Path(*Path(name).parts[1:]) for name in files.getnames()}
    assert expected - found == set()
    subprocess.run(
        [*setup, "build_py", "-d", tmp_path / "wheel"], cwd=source, check=True, capture_output=True
    )
    assert (tmp_path / "wheel/pwlu_det/py.typed").exists()
    assert not (tmp_path / "wheel/pwlu_det/csrc").exists()

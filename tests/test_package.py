"""Without detectron2, ops and activations work, and everything else raises a clear error."""

import subprocess
import sys

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

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coco import write_coco
from detectron2.config import get_cfg

import pwlu_det

ROOT = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item):
    """Skip slow tests that would start after the time in SLOW_TESTS_UNTIL, in seconds since the epoch."""
    limit = os.environ.get("SLOW_TESTS_UNTIL")
    if limit and item.get_closest_marker("slow") and time.time() > float(limit):
        pytest.skip("not begun in the time that continuous integration has")


@pytest.fixture
def cfg():
    """The default config of detectron2 and pwlu_det, on the CPU."""
    cfg = get_cfg()
    pwlu_det.add_pwlu_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return cfg


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory):
    """A small COCO dataset, for the environment variable DETECTRON2_DATASETS."""
    root = tmp_path_factory.mktemp("datasets")
    write_coco(root)
    return root


@pytest.fixture(scope="session")
def run_tool(coco_root):
    """Run a Python script in a separate process, check its exit code, and return its output."""

    def run(script, *arguments, code=0, **variables):
        environment = {**os.environ, "DETECTRON2_DATASETS": str(coco_root), **variables}
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout

    return run

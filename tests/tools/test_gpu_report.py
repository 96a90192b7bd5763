import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool():
    return load("gpu_report")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(run_tool, tmp_path):
    output = run_tool("tools/gpu_report.py", "--output", tmp_path / "gpu", code=1)
    assert output == "make gpu needs a GPU, but torch finds none on this machine\n"
    assert not (tmp_path / "gpu").exists()


def test_a_failed_step_does_not_stop_the_others(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("sys.argv", ["gpu_report.py", "--output", str(tmp_path)])
    show = ["-c", "import os; print(os.environ['TORCH_CUDA_ARCH_LIST'])"]
    monkeypatch.setattr(tool, "steps", lambda output: {"bad": ["-c", "raise SystemExit(3)"], "good": show})
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("MAX_JOBS", "1")
    with pytest.raises(SystemExit, match=r"^bad failed; see"):
        tool.main()
    printed = capsys.readouterr().out
    assert re.search(r"bad +FAILED with exit status 3", printed) and re.search(r"good +done", printed)
    assert (tmp_path / "good.txt").read_text() == "9.0\n"


def test_the_commands_of_the_steps_exist(tool, tmp_path):
    benchmark = load("benchmark").build_parser()
    for name, arguments in tool.steps(tmp_path).items():
        for argument in arguments:
            if argument.endswith((".py", ".yaml")):
                assert (ROOT / argument).is_file(), name
        if "tools/benchmark.py" in arguments:
            assert benchmark.parse_args(arguments[1:]).device == "cuda"

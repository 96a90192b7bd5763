"""Commands with arguments of all kinds: they work, or end with one error and no traceback."""

import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectors import build
from fuzzing import attempt, fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from pwlu_det.config import load_config

ROOT = Path(__file__).resolve().parents[2]
RETINANET = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
SMALL = ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.FPN.NORM", "BN"]


class Refused(Exception):
    """A command ended with its own error message."""


def run(tool: str, *arguments: str) -> None:
    output, errors, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [tool, *arguments]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    except SystemExit as stop:
        text = errors.getvalue()
        if stop.code:
            assert stop.code == 2 and text.count("error: ") >= 1 and "Traceback" not in text, text
            raise Refused(text) from None
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with spaces and non-ASCII letters in its name, and files of all kinds in it."""
    folder = tmp_path_factory.mktemp("Ordner für alles 試")
    (folder / "config ñ.yaml").write_text(
        RETINANET.read_text().replace("retinanet", f"{RETINANET.parent}/retinanet")
    )
    (folder / "empty").write_bytes(b"")
    (folder / "text.pth").write_text("no weights")
    (folder / "a folder.pth").mkdir()
    cfg = load_config(str(RETINANET), SMALL)
    torch.save({"model": build(cfg).state_dict()}, folder / "wéights.pth")
    torch.save(
        {"model": {"a.points": torch.zeros(2, 3), "a.left_bound": torch.zeros(2)}}, folder / "half.pth"
    )
    return folder


NAMES = st.one_of(
    st.sampled_from(["config ñ.yaml", "wéights.pth", "wéights.pth", "text.pth", "half.pth", "a folder.pth"]),
    st.sampled_from(
        ["empty", "none.pth", "new é.pth", "new é.pth", "new.png", "new.svg", "new.xyz", "", "."]
    ),
    st.sampled_from(["/dev/null", "/dev/full", "/proc/x.pth", "/proc/x.png"]),
    st.sampled_from(["x" * 300 + ".pth", "a\udcff.pth", "-1", "--weights"]),
    st.text(st.characters(exclude_characters="\0/"), max_size=5),
)
REST = st.lists(
    st.one_of(st.sampled_from(["--bottom-up", "MODEL.RESNETS.DEPTH", "18", "MODEL", "--help"]), NAMES),
    max_size=2,
)


def paths(folder, *names: str) -> list[str]:
    return [name if name.startswith(("/", "-")) else f"{folder}/{name}" for name in names]


@fuzz(40, 500)
@given(NAMES, NAMES, NAMES, REST, st.booleans())
def test_export(folder, config, weights, output, rest, plausible):
    if plausible:
        config, rest = "config ñ.yaml", []
    config, weights, output = paths(folder, config, weights, output)
    arguments = ["--config-file", config, "--weights", weights, "--output", output, *rest, *SMALL]
    attempt("commands: export_backbone", lambda: run("export_backbone.py", *arguments), Refused)
    clean(folder)


@fuzz(40, 500)
@given(NAMES, NAMES)
@example("half.pth", "new.png")
@example("wéights.pth", "new.svg")
def test_plot(folder, weights, output):
    weights, output = paths(folder, weights, output)
    arguments = ["--weights", weights, "--output", output]
    attempt("commands: plot_activations", lambda: run("plot_activations.py", *arguments), Refused)
    clean(folder)


OPTIONS = st.sampled_from(
    ["--resume", "--eval-only", "--num-gpus", "2", "OUTPUT_DIR", "MODEL.WEIGHTS", "SOLVER.MAX_ITER"]
)


@fuzz(40, 500)
@given(NAMES, st.lists(st.one_of(OPTIONS, NAMES), max_size=4))
def test_train(folder, config, rest):
    """Run the command up to the start of the training processes."""
    rest = [
        part if part.startswith("-") or part.isupper() or "." in part else f"{folder}/{part}" for part in rest
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pwlu_det.engine.launch.launch", lambda *args, **kwargs: None)
        patch.chdir(folder)
        arguments = ["--config-file", *paths(folder, config), *rest]
        attempt("commands: train_net", lambda: run("train_net.py", *arguments), Refused)


WORDS = st.one_of(
    st.sampled_from(
        ["op", "model", "--shapes", "--seconds", "nan", "-1", "inf", "--rounds", "--output", "--batch"]
    ),
    st.sampled_from(
        ["--threads", "0", "1,2,3,4", "x", "--config-file", "--layout", "1e9", "--memory", "fresh"]
    ),
    NAMES,
)


@fuzz(40, 500)
@given(st.lists(WORDS, max_size=6))
def test_benchmark(folder, words):
    """Run the command up to the measurements: the last argument is always invalid."""
    attempt("commands: benchmark", lambda: run("benchmark.py", *words, "--dtype", "int3"), Refused)


def clean(folder) -> None:
    for path in folder.iterdir():
        assert not path.name.endswith(".tmp"), "a partial file was left behind"
        if path.name.startswith(("new", "x")):
            path.unlink()

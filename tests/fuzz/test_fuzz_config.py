"""Configs: any file and command line gives a model or is refused with one error of this package."""

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from fuzzing import attempt, fuzz
from hypothesis import given
from hypothesis import strategies as st

from pwlu_det import PwluDetError, add_pwlu_config, build_activation, check_config
from pwlu_det.activations.registry import ACTIVATIONS
from pwlu_det.config import load_config
from pwlu_det.preflight import check_files, check_training


def keys(node, prefix: str = ""):
    for key, value in node.items():
        yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


DEFAULTS = get_cfg()
add_pwlu_config(DEFAULTS)
OURS = sorted(keys(DEFAULTS.MODEL.ACTIVATION, "MODEL.ACTIVATION."))
ALL = sorted(keys(DEFAULTS))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 40),
    st.floats(),
    st.floats(-2, 2),
    st.text(max_size=8),
    st.sampled_from([*ACTIVATIONS, "channel", "relu", "res2", "act1", "GN", 1e308, 10**400, 2**31]),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=4), SCALARS, max_size=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configs é")


BASE = ["MODEL.BACKBONE.NAME", "build_act_resnet_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0]
BASE += ["MODEL.RESNETS.NORM", "BN", "MODEL.DEVICE", "cpu"]


def prepare(path, overrides=()):
    """Load and check a config as the commands do."""
    cfg = load_config(str(path), [*BASE, *overrides])
    check_config(cfg)
    check_training(cfg)
    return cfg


def nested(settings):
    tree = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                return {}
        node[leaf] = value
    return tree


BYTES = st.one_of(
    st.binary(max_size=100),
    st.text(max_size=100).map(lambda text: text.encode(errors="replace")),
    st.recursive(VALUES, lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3)).map(
        lambda value: yaml.safe_dump(value).encode()
    ),
    st.sampled_from(
        [
            b"",
            b"[]",
            b"3",
            b"MODEL: 3",
            b"MODEL: null",
            b"MODEL:\n  ACTIVATION: null",
            b"VERSION: 1",
            b"VERSION: x",
            b"VERSION: 99",
            b"_BASE_: it.yaml",
            b"_BASE_: [it.yaml, it.yaml]",
            b"_BASE_: none.yaml",
            b"_BASE_: 3",
            b"_BASE_: null",
            b"_BASE_: [null]",
            b"_BASE_: {}",
            b"_BASE_: .",
            b"[" * 3000,
            b"{a: " * 3000,
            b"- " * 3000,
            b"a: &a [*a]",
            b"MODEL: &m {ACTIVATION: *m}",
            b"? {a: 1}\n: 2",
            b"? [a]\n: 2",
            b"!!set {a}",
            b"!!binary abcd",
            b"a: !!python/object/apply:os.mkdir [ran]",
            b"a: !!python/name:os.system",
            b"OUTPUT_DIR: 2001-01-01",
            b"MODEL: {PIXEL_MEAN: &a [1.0, *a]}",
            b"x: &x [1,1]\ny: &y [*x,*x]\nz: [*y,*y]",
            b"%YAML 9.9\n---\na: 1",
            b"\xff\xfe\x00",
            b"--- 1\n--- 2",
            b"MODEL: {ACTIVATION: {NAME: [pwlu]}}",
            b"MODEL.ACTIVATION.NAME: pwlu",
            b"SOLVER: {BASE_LR: .nan}",
        ]
    ),
)


@fuzz(150, 2000)
@given(BYTES)
def test_files(folder, content):
    path = folder / "it.yaml"
    path.write_bytes(content)
    attempt("config: files", lambda: prepare(path))
    assert not (folder / "ran").exists()


def of_type(key: str) -> st.SearchStrategy:
    node = DEFAULTS
    for part in key.split("."):
        node = node[part]
    if isinstance(node, list):
        return st.lists(st.sampled_from(["stem", "res2", "act1", "x"]), max_size=2)
    numbers = {int: st.integers(-2, 2000), float: st.floats(0, 10), bool: st.booleans()}
    return numbers.get(type(node), st.sampled_from(["channel", "layer", "pixel", "relu", "leaky_relu"]))


SETTINGS = st.lists(
    st.sampled_from(OURS).flatmap(lambda key: st.tuples(st.just(key), st.one_of(of_type(key), VALUES))),
    max_size=3,
).map(dict)
NAMES = st.sampled_from(sorted(ACTIVATIONS))


@fuzz(150, 2000)
@given(NAMES, SETTINGS, st.booleans())
def test_our_keys_give_an_activation_or_an_error(folder, name, settings, in_a_file):
    settings = {"MODEL.ACTIVATION.NAME": name, **settings}
    path = folder / "ours.yaml"
    path.write_text(yaml.safe_dump(nested(settings) if in_a_file else {}))
    overrides = [] if in_a_file else [part for pair in settings.items() for part in (pair[0], repr(pair[1]))]
    cfg = attempt("config: our keys", lambda: prepare(path, overrides))
    if not isinstance(cfg, PwluDetError):
        y = build_activation(cfg, 8)(torch.linspace(-4, 4, 256).reshape(2, 8, 4, 4))
        assert y.isfinite().all()


@fuzz(100, 1500)
@given(
    st.lists(
        st.one_of(st.sampled_from(ALL), st.text(max_size=6), SCALARS.map(repr), VALUES.map(repr)), max_size=6
    )
)
def test_command_lines(folder, overrides):
    path = folder / "empty.yaml"
    path.write_text("{}")
    attempt("config: command lines", lambda: prepare(path, overrides))


PATHS = st.one_of(
    st.text(max_size=12).filter(lambda text: ".." not in text),
    st.sampled_from(
        [
            "",
            "a b",
            "é",
            "x" * 300,
            "f",
            "f/x",
            "a\0b",
            "\udcff",
            "last_checkpoint",
            "x?y=1",
            "x?",
            "http",
            "a:b",
        ]
    ),
)


DEVICES = st.one_of(st.sampled_from(["cpu", "cpu", "cuda", "cuda:99", "cpu:x", "meta"]), st.text(max_size=5))
SETS = st.one_of(st.sampled_from(["digits_val", "coco_2017_val"]), st.text(max_size=5), SCALARS)


@fuzz(100, 1000)
@given(
    PATHS,
    PATHS,
    DEVICES,
    st.one_of(st.just(["digits_val"]), st.lists(SETS, max_size=2)),
    st.booleans(),
    st.booleans(),
)
def test_paths_and_names(folder, output, weights, device, sets, resume, training):
    torch.save({"a": torch.zeros(1)}, folder / "w.pth")
    (folder / "f").write_text("a file")
    cfg = get_cfg()
    add_pwlu_config(cfg)
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = f"{folder}/{output}", weights and f"{folder}/{weights}"
    cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = device, tuple(sets), tuple(sets)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 10
    attempt("config: paths and names", lambda: check_files(cfg, resume, training))
    assert not (folder / "ran").exists()

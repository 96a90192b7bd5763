"""Config files are loaded in a time that fits their size."""

import os

import pytest
import yaml

from pwlu_det import ConfigError
from pwlu_det.config import check_yaml, load_config


def bomb(start: str, repeat: str, levels: int = 60) -> str:
    """Each level refers twice to the one before."""
    levels = (f"a{i}: &a{i} {repeat.format(f'*a{i - 1}')}\n" for i in range(1, levels))
    return f"a0: &a0 {start}\n" + "".join(levels)


BOMBS = {
    "lists": bomb("[1, 2]", "[{0}, {0}]"),
    "dictionaries": bomb("{x: 1}", "{{x: {0}, y: {0}}}"),
    "merged dictionaries": bomb("{x: 1}", "{{<<: [{0}, {0}]}}"),
    "a long list": f"b: &b [{', '.join(['1'] * 10_000)}]\n" + bomb("[*b, *b]", "[{0}, {0}]", 10),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("in_base", [False, True])
def test_aliases_that_repeat_content_exponentially(tmp_path, kind, in_base):
    path = tmp_path / "config.yaml"
    path.write_text(BOMBS[kind])
    if in_base:
        (tmp_path / "derived.yaml").write_text("_BASE_: config.yaml\n")
        path = tmp_path / "derived.yaml"
    with pytest.raises(
        ConfigError, match=r"--config-file .*: its aliases \(\*name\) repeat its content too often"
    ):
        load_config(str(path), [])


def test_ordinary_aliases_are_allowed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("SOLVER: {STEPS: &steps [10, 20]}\nTEST: {AUG: {MIN_SIZES: *steps}}\nVERSION: 2\n")
    assert load_config(str(path), []).TEST.AUG.MIN_SIZES == (10, 20)
    text = f"a: &a {{x: [{', '.join('1' * 100)}]}}\n" + "".join(f"b{i}: {{<<: *a}}\n" for i in range(20))
    check_yaml(text + "# " + "x" * 2000)
    with pytest.raises(yaml.YAMLError):
        check_yaml("[")


SLOW = {
    "number to the base 60": ("SEED: 1" + ":1" * 200_000, "a number of more than 1000 characters"),
    "binary number": ("SEED: 0b" + "1" * 10**6, "a number of more than 1000 characters"),
    "nested lists": ("SEED: " + "[" * 100_000, "nested too deeply"),
    "nested keys": ("".join(" " * i + "a:\n" for i in range(1000)), "nested too deeply"),
}


@pytest.mark.parametrize("kind", SLOW)
def test_values_that_take_long_to_load(tmp_path, kind):
    text, message = SLOW[kind]
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"it .*{message}"):
        load_config(str(tmp_path / "config.yaml"), [])


@pytest.mark.parametrize(
    "text, message",
    [
        ("# nothing", "must contain keys and values"),
        ("- a list", "must contain keys and values"),
        (f"DATASETS: {{TRAIN: '{'-' * 100_000}1'}}", r"config\.yaml: \w+Error$"),
        (f"SEED: {'x' * 100_000}", r"config\.yaml: .{2000}$"),
    ],
)
def test_message_is_neither_empty_nor_huge(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "config.yaml"), [])


def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "config.yaml").write_text("_BASE_: pipe.yaml\n")
    for name in ("pipe.yaml", "config.yaml"):
        with pytest.raises(ConfigError, match=r"pipe\.yaml is not a regular file"):
            load_config(str(tmp_path / name), [])


def test_base_that_refers_back(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(ConfigError, match="its _BASE_ refers back to it"):
        load_config(str(tmp_path / "a.yaml"), [])

import pytest
import torch
from kill_and_resume import NUM_KILLS, Schedule, check, differences, kinds_of_kills


def test_killed_and_resumed_runs_match_an_uninterrupted_one(tmp_path):
    """Short runs; the command in the docstring of kill_and_resume has longer ones."""
    kinds = kinds_of_kills(NUM_KILLS)
    results = check(kinds, Schedule(length=12, switch=6, period=4), tmp_path)
    assert results == [(kind, []) for kind in kinds]


@pytest.mark.parametrize(
    "changed", [{"a": [torch.ones(2), 1.0]}, {"a": [torch.zeros(2), 2.0]}, {"a": [torch.zeros(2)]}, {}]
)
def test_comparison_finds_differences(changed):
    state = {"a": [torch.zeros(2), 1.0]}
    assert differences(state, {"a": [torch.zeros(2), 1.0]}) == []
    assert differences(state, changed)

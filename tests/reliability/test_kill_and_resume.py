import pytest
import torch
from kill_and_resume import KILLS, NUM_KILLS, Schedule, check, differences, kinds_of_kills


def test_killed_and_resumed_run_matches_an_uninterrupted_one(tmp_path):
    """A short version; the command in the docstring of kill_and_resume is the full one."""
    schedule = Schedule(length=12, switch=6, period=4)
    kinds = list(KILLS)
    results = check(kinds, schedule, tmp_path, parallel=1)
    assert results == [(kind, []) for kind in kinds]


@pytest.mark.slow
def test_many_killed_and_resumed_runs_match_an_uninterrupted_one(tmp_path):
    kinds = kinds_of_kills(NUM_KILLS)
    assert check(kinds, Schedule(), tmp_path) == [(kind, []) for kind in kinds]


@pytest.mark.parametrize(
    "changed", [{"a": [torch.ones(2), 1.0]}, {"a": [torch.zeros(2), 2.0]}, {"a": [torch.zeros(2)]}, {}]
)
def test_comparison_finds_differences(changed):
    state = {"a": [torch.zeros(2), 1.0]}
    assert differences(state, {"a": [torch.zeros(2), 1.0]}) == []
    assert differences(state, changed)

"""Hostile input by the thousand: what is common to the tests in ``fuzz/``.

They try some 1,600 inputs, always the same. With PWLU_DET_FUZZ=long in the environment they try over 20,000,
others in each run. Either way they end with a table of how many each target was given, and what became of
them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from pwlu_det import PwluDetError

LONG = os.environ.get("PWLU_DET_FUZZ") == "long"
REFUSED, WORKED = "refused", "worked"

outcomes: Counter = Counter()
"""How often (target, outcome) was met."""


def fuzz(short: int, long: int) -> settings:
    """How many inputs a test is given."""
    return settings(
        max_examples=long if LONG else short,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def attempt(target: str, call: Callable[[], Any], documented: type[Exception] = PwluDetError) -> Any:
    """Count a call as refused, with one error of the documented kind, or as having worked.

    Gives what it returns, or the error. Any other exception fails the test.
    """
    try:
        result = call()
    except documented as error:
        assert str(error), "an error that says nothing"
        outcomes[target, REFUSED] += 1
        return error
    outcomes[target, WORKED] += 1
    return result

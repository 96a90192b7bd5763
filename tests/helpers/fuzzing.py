"""Helpers for the tests in ``fuzz/``, which try thousands of hostile inputs.

By default, the tests try about 1,600 inputs, the same in every run. With PWLU_DET_FUZZ=long in the
environment, they try more than 20,000, different in every run. Either way, they end with a table of the
number of inputs and the outcomes of each target.
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
"""Number of occurrences of each (target, outcome)."""


def fuzz(short: int, long: int) -> settings:
    """Settings for the number of inputs of a test."""
    return settings(
        max_examples=long if LONG else short,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def attempt(target: str, call: Callable[[], Any], documented: type[Exception] = PwluDetError) -> Any:
    """Count a call as refused if it raises the documented error, or else as worked.

    Returns the result of the call, or the error. Any other exception fails the test.
    """
    try:
        result = call()
    except documented as error:
        assert str(error), "the error has no message"
        outcomes[target, REFUSED] += 1
        return error
    outcomes[target, WORKED] += 1
    return result

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """All tests here are slow: they start several processes, some of which are killed or stopped."""
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.slow)

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Mark all tests here as slow: they compile for emulation, for sanitizers and for every architecture."""
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.slow)

"""The table of what ran on which QEMU."""

from __future__ import annotations

import pytest

from tests.matrix import versions


@pytest.mark.parametrize(
    ("nodeid", "shown"),
    [
        ("tests/a.py::test_one", ""),
        ("tests/a.py::test_one[0.5-17.25]", ""),
        ("tests/a.py::test_one[7.2]", "7.2"),
        ("tests/a.py::Test::test_one[10.0-source-prepared]", "10.0"),
        ("tests/a.py::test_one[paused-7.2]", "7.2"),
        ("tests/a.py::test_one[7.2-to-7.2]", "7.2"),
        ("tests/a.py::test_one[7.2-to-10.0-paused]", "7.2 to 10.0"),
    ],
    ids=range(7),
)
def test_versions_are_read_from_a_tests_name(nodeid: str, shown: str) -> None:
    assert versions(nodeid) == shown

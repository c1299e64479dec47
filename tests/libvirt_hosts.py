"""Which hosts of tests have a libvirtd, and why there may be none; `tests/conftest.py` starts them."""

from __future__ import annotations

import itertools
from functools import cache

from migrator.testing.libvirtd import why_not

NAMES = ("alpha", "beta", "gamma")
_numbers = itertools.count(1)


@cache
def reason() -> str | None:
    """Return why tests of libvirt cannot run here; ``None`` where they can."""
    try:
        import libvirt  # noqa: F401, PLC0415 - whether it is there
    except ImportError:
        return "there is no libvirt-python: make test installs it"
    return why_not()


def guest_name() -> str:
    """Return a name that no other guest of this process has."""
    return f"lv-{next(_numbers)}"

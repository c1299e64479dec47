"""Marks at a QEMU: texts under fixed names that everyone who asks that QEMU sees.

A mark is an object of QEMU's that does nothing (``authz-simple``, since 4.0). It may be added and removed at any time,
also while QEMU waits for a guest, stands at the switch or was left; it ends with its process and does not migrate. QEMU
never has two objects of one name, so of several that add a mark at once exactly one succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

from migrator.errors import CommandFailed
from migrator.qemu.monitor import Monitor

#: Beginning of the ids of our objects; no other object is ours.
PREFIX = "migrator-"
_TYPE, _TEXT = "authz-simple", "identity"


async def read(monitor: Monitor, *names: str, timeout: float = 5.0) -> dict[str, str]:
    """Return the texts of those marks that are there, queried together.

    :raise QemuError: it cannot be asked.
    """

    async def one(name: str) -> str | None:
        where = {"path": f"/objects/{PREFIX}{name}", "property": _TEXT}
        try:
            return str(await monitor.execute("qom-get", where, timeout=timeout))
        except CommandFailed:
            return None

    found = await asyncio.gather(*map(one, names))
    return {name: text for name, text in zip(names, found, strict=True) if text is not None}


async def possible(monitor: Monitor) -> bool:
    """Tell whether QEMUs of this kind can have marks.

    :raise QemuError: it cannot be asked.
    """
    try:
        return bool(await monitor.execute("qom-list-types", {"implements": _TYPE}))
    except CommandFailed:
        return False


def option(name: str, text: str) -> tuple[str, str]:
    """Return the option that gives a QEMU a mark from its start; see :func:`without`.

    :param text: without commas.
    """
    return "-object", f"{_TYPE},id={PREFIX}{name},{_TEXT}={text}"


def without(argv: Sequence[str]) -> list[str]:
    """Return a command line without the marks that :func:`option` put there."""
    ours = {
        at + 1
        for at, (word, value) in enumerate(pairwise(argv))
        if word.lstrip("-") == "object" and value.startswith(f"{_TYPE},id={PREFIX}")
    }
    return [word for at, word in enumerate(argv) if at not in ours and at + 1 not in ours]


async def add(monitor: Monitor, name: str, text: str, *, timeout: float = 5.0) -> bool:
    """Add a mark; return False where there is one of that name, and then nothing has changed.

    :param name: letters, digits, ``-``, ``.`` and ``_``.
    :raise CommandFailed: this QEMU cannot have marks.
    :raise QemuError: it cannot be asked; the mark may have been added.
    """
    try:
        await monitor.execute(
            "object-add", {"qom-type": _TYPE, "id": f"{PREFIX}{name}", _TEXT: text}, timeout=timeout
        )
    except CommandFailed:
        if await read(monitor, name, timeout=timeout):
            return False
        raise
    return True


async def change(monitor: Monitor, name: str, text: str, *, timeout: float = 5.0) -> None:
    """Give a mark that is there another text.

    :raise QemuError: it is not there, or it cannot be asked.
    """
    where = {"path": f"/objects/{PREFIX}{name}", "property": _TEXT, "value": text}
    await monitor.execute("qom-set", where, timeout=timeout)


async def remove(monitor: Monitor, name: str, *, timeout: float = 5.0) -> None:
    """Remove a mark; one that is not there is no error.

    :raise QemuError: it cannot be asked; the mark may have been removed.
    """
    try:
        await monitor.execute("object-del", {"id": f"{PREFIX}{name}"}, timeout=timeout)
    except CommandFailed:
        if await read(monitor, name, timeout=timeout):
            raise

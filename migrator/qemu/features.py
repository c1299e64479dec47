"""Abilities of a QEMU, found by introspection and never by its version.

Its schema is one line of over 200 kB that costs QEMU and us some 100 ms, so what is needed of it is kept in a file
under the identity of the binary.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrator.machine import replace_file
from migrator.qemu.monitor import Monitor


@dataclass(frozen=True)
class Features:
    """Every QMP command with the names of its arguments."""

    commands: dict[str, frozenset[str]]

    def takes(self, command: str, argument: str) -> bool:
        """Tell whether `command` exists and takes `argument`."""
        return argument in self.commands.get(command, frozenset())


def cache_directory() -> Path:
    """Return the directory in which introspection is kept: ``$XDG_CACHE_HOME/migrator``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "migrator"


def from_schema(schema: list[dict[str, Any]]) -> Features:
    """Read the answer of query-qmp-schema."""
    objects = {
        entry["name"]: frozenset(member.get("name", "") for member in entry.get("members", ()))
        for entry in schema
        if entry["meta-type"] == "object"
    }
    return Features(
        {
            entry["name"]: objects.get(entry.get("arg-type", ""), frozenset())
            for entry in schema
            if entry["meta-type"] == "command"
        }
    )


async def read(monitor: Monitor, binary: str) -> Features:
    """Return the features of the QEMU behind `monitor`.

    :param binary: identity of its program (see :meth:`migrator.machine.LocalProcess.binary_identity`);
        where it is not known the answers of query-version and query-commands stand for it.
    """
    if not binary:
        version = await monitor.execute("query-version")
        commands = await monitor.execute("query-commands")
        binary = json.dumps([version, sorted(command["name"] for command in commands)])
    path = cache_directory() / f"features-{hashlib.sha256(binary.encode()).hexdigest()[:24]}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Features({name: frozenset(arguments) for name, arguments in kept.items()})
    except (OSError, ValueError, AttributeError, TypeError):
        pass  # absent, or damaged: it is only a cache
    features = from_schema(await monitor.execute("query-qmp-schema", timeout=20.0))
    _keep(path, features)
    return features


def _keep(path: Path, features: Features) -> None:
    text = json.dumps({name: sorted(arguments) for name, arguments in sorted(features.commands.items())})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    except OSError:
        pass  # no cache then: the next run asks again

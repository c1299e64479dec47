"""The configuration that the service runs by, and who follows it through reloads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from migrator.settings import reloading
from migrator.settings.configuration import Settings
from migrator.settings.loader import reload

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Prepare(Protocol[T_contra]):
    """Makes ready for another value."""

    def __call__(self, new: T_contra, /) -> Callable[[], None]:
        """Return what takes it over, which cannot fail; nothing is changed before that is called.

        :raise MigratorError: the value cannot be used.
        """


class LiveSettings:
    """The configuration in force, and what is told of another one.

    A reload is all or nothing: when a part refuses, or something takes a restart, no part has changed.

    :param path: the file that it is read from; ``None``: variables of the environment alone.
    :param environ: as for :func:`migrator.settings.load`.
    """

    def __init__(
        self, settings: Settings, path: Path | None, *, environ: Mapping[str, str] | None = None
    ) -> None:
        self.settings = settings
        self._path, self._environ = path, environ
        self._subscribers: list[Callable[[Settings], Callable[[], None] | None]] = []

    def subscribe(self, section: Callable[[Settings], T], prepare: Prepare[T]) -> None:
        """Have a part follow what it takes of the configuration.

        :param section: selects that; the part is told only when it is different.
        """

        def prepared(new: Settings) -> Callable[[], None] | None:
            value: Any = section(new)
            return None if value == section(self.settings) else prepare(value)

        self._subscribers.append(prepared)

    async def reload(self) -> list[tuple[str, str]]:
        """Read it again and put all of it in force; each key that is different, and when it is in force.

        :raise MigratorError: something is wrong in it, or takes a restart: nothing is changed.
        """
        new = await asyncio.to_thread(reload, self.settings, self._path, environ=self._environ)
        changed = list(reloading.changes(self.settings, new))
        ready = [take_over for prepared in self._subscribers if (take_over := prepared(new)) is not None]
        self.settings = new
        for take_over in ready:
            take_over()
        return changed

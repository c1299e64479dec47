"""Documents of guests whose state is in a file.

See :mod:`migrator.api.documents` for their units.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from migrator.api.documents import Document


class LoadableDocument(Document):
    """The answer to whether a saved guest can be loaded on one host, as far as that shows without trying."""

    host: str
    loadable: bool
    #: Why not, in one line.
    reason: str = ""


class SavedGuestDocument(Document):
    """A guest whose state is in a file."""

    #: The migration that saved it.
    migration: str
    guest: str
    guest_name: str = ""
    host: str
    file: str
    #: ``saving``: its guest may go on where it was. ``saved``. ``loading``: a migration takes it out of the file.
    #: ``outdated``: the guest runs, or has run since. ``missing``: there is no such file any more. ``unreadable``: what
    #: is there is not what was saved. ``unknown``: its host cannot be asked. ``discarded``: it was deleted just now.
    state: Literal["saving", "saved", "loading", "outdated", "missing", "unreadable", "unknown", "discarded"]
    #: Why it is not simply ``saved``, in one line.
    reason: str = ""
    saved_at: datetime | None = None
    size_bytes: int | None = None
    #: The QEMU that saved it, and its machine type.
    qemu: str = ""
    qemu_version: str = ""
    machine: str = ""
    #: Of every host that can be asked.
    hosts: list[LoadableDocument] = Field(default_factory=list)


class SavedGuestsDocument(Document):
    """Guests that are saved in files and were not loaded yet, the oldest first."""

    items: list[SavedGuestDocument] = Field(default_factory=list)

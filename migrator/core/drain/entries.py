"""The guests of an evacuation, grouped by how far each is. A value that knows what was changed since an earlier one.

An evacuation of many guests changes a few times for each of them. So nothing here goes through all of them for one
change: copies are made of whole dictionaries, and what was changed is kept beside them.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass

from migrator.core.drain.entry import Entry
from migrator.core.drain.states import GuestStanding

#: So many changes are kept; who asks for what came before has to look at everybody.
_CHANGES_KEPT = 1000


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    """One version, and the keys of what was changed between the one before and it."""

    changed: tuple[str, ...] = ()
    before: _Version | None = None
    length: int = 0


class Entries(Mapping[str, Entry]):
    """Entries by the guests' keys, in the order in which the guests joined."""

    __slots__ = ("_all", "_by_standing", "_version")

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._all: dict[str, Entry] = dict(entries or {})
        self._by_standing: dict[GuestStanding, dict[str, Entry]] = {}
        for key, entry in self._all.items():
            self._by_standing.setdefault(entry.standing, {})[key] = entry
        self._version = _Version()

    def changed(self, changes: Mapping[str, Entry]) -> Entries:
        """Return them with these in place of those of the same guests; new ones join at the end."""
        after = Entries()
        after._all = {**self._all, **changes}
        groups = after._by_standing = dict(self._by_standing)
        copied: set[GuestStanding] = set()

        def group(standing: GuestStanding) -> dict[str, Entry]:
            if standing not in copied:
                copied.add(standing)
                groups[standing] = dict(groups.get(standing, ()))
            return groups[standing]

        for key, entry in changes.items():
            before = self._all.get(key)
            if before is not None and before.standing is not entry.standing:
                del group(before.standing)[key]
            group(entry.standing)[key] = entry
        version = self._version if self._version.length < _CHANGES_KEPT else _Version()
        after._version = _Version(tuple(changes), version, version.length + 1)
        return after

    def changed_since(self, before: Entries) -> set[str] | None:
        """Return the keys of all that may be different from `before`; ``None`` where that is not known."""
        found: set[str] = set()
        version: _Version | None = self._version
        while version is not None:
            if version is before._version:
                return found
            found.update(version.changed)
            version = version.before
        return None

    def at(self, *standings: GuestStanding) -> list[Entry]:
        """Return those who are so far, in no order to be relied upon."""
        return [entry for standing in standings for entry in self._by_standing.get(standing, {}).values()]

    def count(self, *standings: GuestStanding) -> int:
        """Return how many are so far."""
        return sum(len(self._by_standing.get(standing, ())) for standing in standings)

    # --- a mapping ---------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Entry:
        return self._all[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, key: object) -> bool:
        return key in self._all

    def items(self) -> ItemsView[str, Entry]:
        return self._all.items()

    def keys(self) -> KeysView[str]:
        return self._all.keys()

    def values(self) -> ValuesView[Entry]:
        return self._all.values()

    def __reduce__(self) -> tuple[type[Entries], tuple[dict[str, Entry]]]:
        """Go to another process without what was changed when."""
        return Entries, (self._all,)

    def __repr__(self) -> str:
        return f"Entries({self._all!r})"

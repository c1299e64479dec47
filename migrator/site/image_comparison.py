"""Compares what a guest has left at its source with its disks where it is now, and removes it.

The guest goes on writing meanwhile. Its QEMU has noted since the switch what was written; whatever differs besides
that was not copied as it should have been. Both sides read block by block and tell only digests of what they read.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import migrator.hosts.image_program
from migrator.core.image_removal import ImageRemoval, OldImage
from migrator.errors import ComparisonFailed, HostError, QemuError
from migrator.hosts.access import HostAccess
from migrator.qemu.disk_comparison import DiskComparison
from migrator.site.connections import HostConnections

_PROGRAM = inspect.getsource(migrator.hosts.image_program)
#: Blocks that are compared first, and what those that differ are divided into; bytes.
_BLOCK, _PART = 4 << 20, 64 << 10
#: So many blocks are read by one command, and one takes so many seconds at the most.
_BLOCKS, _SECONDS = 2_048, 600.0
#: Bytes per second that are read at either end: the guest goes on beside.
_RATE = 64 << 20
#: A write that was under way while a block was read is noted once it is done: so often it is looked again, after so
#: many seconds.
_LOOKS, _LOOK_SECONDS = 5, 1.0
_SHORT = 15.0
#: Whatever is beside an image, and beside those that processes have open, is looked at before it is removed.
_REMOVE = 60.0


@dataclass(frozen=True, kw_only=True)
class _Digests:
    size: int
    by_block: Mapping[int, str]
    identity: tuple[int, ...] = ()


class ImageComparison:
    """Compares and removes; see :class:`migrator.ports.Site`.

    :param rate: bytes per second that are read at either end.
    """

    def __init__(self, connections: HostConnections, *, rate: int = _RATE) -> None:
        self._connections, self._rate = connections, rate

    async def compare(self, removal: ImageRemoval) -> ImageRemoval:
        """See :meth:`migrator.ports.Site.compare_images`. The guest's monitor is held for moments only."""
        path = f"{removal.socket.rpartition('/')[0]}/compared"
        bitmaps = {image.device: image.written for image in removal.images}
        async with self._asked(removal) as comparison:
            exports = await comparison.serve(bitmaps, path)
        same = False
        try:
            compared = [
                await self._compare(removal, image, path, exports[image.device]) for image in removal.images
            ]
            same = True
        finally:
            with contextlib.suppress(HostError, QemuError):  # it has ended meanwhile, and serves nothing
                async with self._asked(removal) as comparison:
                    await comparison.stop(bitmaps if same else None)
        return replace(removal, images=tuple(compared))

    @contextlib.asynccontextmanager
    async def _asked(self, removal: ImageRemoval) -> AsyncIterator[DiskComparison]:
        """Open the guest's monitor where it is now."""
        end = await self._connections.open(
            removal.target, removal.socket, role="source", identity=removal.process
        )
        try:
            yield end.comparison
        finally:
            await end.close()

    async def _compare(self, removal: ImageRemoval, image: OldImage, path: str, export: str) -> OldImage:
        here, there = self._connections.access(removal.host), self._connections.access(removal.target)
        old = {"image": image.path, "format": image.format}
        now = {"socket": path, "export": export}
        identity: tuple[int, ...] = ()
        first, size = 0, 1
        while first * _BLOCK < size:
            span = [(first, _BLOCKS)]
            left, right = await asyncio.gather(
                self._digests(here, old, _BLOCK, span), self._digests(there, now, _BLOCK, span)
            )
            if left.size != right.size:
                raise ComparisonFailed(
                    f"{image.path} has {left.size} bytes, and disk {image.device} has {right.size} by now"
                )
            if identity and left.identity != identity:
                raise ComparisonFailed(f"{image.path} was written to, or replaced, while it was read")
            identity, size = left.identity, left.size
            differing = sorted(_differing(left, right))
            if differing:
                await self._explain(removal, image, old, now, differing)
            first += _BLOCKS
        return replace(image, identity=identity)

    async def _explain(
        self,
        removal: ImageRemoval,
        image: OldImage,
        old: Mapping[str, str],
        now: Mapping[str, str],
        blocks: Sequence[int],
    ) -> None:
        """Find for each difference that the guest has written there since the switch.

        :raise ComparisonFailed: it has not.
        """
        here, there = self._connections.access(removal.host), self._connections.access(removal.target)
        parts = [
            each for block in blocks for each in range(block * _BLOCK // _PART, (block + 1) * _BLOCK // _PART)
        ]
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(_LOOK_SECONDS)
            spans = list(_spans(parts))
            left, right = await asyncio.gather(
                self._digests(here, old, _PART, spans), self._digests(there, now, _PART, spans)
            )
            async with self._asked(removal) as comparison:
                export, bitmap = await comparison.serve_written(image.device, image.written)
            written = await self._written(there, now["socket"], export, bitmap)
            parts = [each for each in sorted(_differing(left, right)) if not _covers(written, each)]
            if not parts:
                return
        raise ComparisonFailed(
            f"disk {image.device} is not what {image.path} has at {parts[0] * _PART} (and {len(parts)} blocks of "
            f"{_PART >> 10} KiB in all), where the guest has written nothing since its switch"
        )

    async def _digests(
        self, access: HostAccess, what: Mapping[str, str], block: int, ranges: Sequence[tuple[int, int]]
    ) -> _Digests:
        wanted = {**what, "block": block, "ranges": ranges, "rate": self._rate}
        said = await _run(access, "digests", wanted, timeout=_SECONDS)
        found = {}
        size, identity = -1, tuple[int, ...]()
        for line in said:
            for each in line.get("digests", ()):
                number, _, digest = str(each).partition(" ")
                found[int(number)] = digest
            size = int(line.get("size", size))
            identity = tuple(line.get("identity", identity))
        return _Digests(size=size, by_block=found, identity=identity)

    async def _written(
        self, access: HostAccess, path: str, export: str, bitmap: str
    ) -> list[tuple[int, int]]:
        """Return where something was written: the first byte and the one after the last, of each extent."""
        options = (
            f"driver=nbd,server.type=unix,server.path={path.replace(',', ',,')},export={export},"
            f"x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
        )
        done = await access.run(
            ["qemu-img", "map", "--output=json", "--image-opts", options], timeout=_SECONDS
        )
        try:
            # Of a bitmap, what is dirty is shown as having no data.
            return [
                (each["start"], each["start"] + each["length"])
                for each in json.loads(done.text)
                if not each["data"]
            ]
        except (ValueError, KeyError, TypeError):
            raise HostError(
                access.name, f"what was written to a disk cannot be read: {done.complaint or 'no answer'}"
            ) from None

    async def remove(self, removal: ImageRemoval) -> Mapping[str, str]:
        """See :meth:`migrator.ports.Site.remove_images`."""
        access, kept = self._connections.access(removal.host), {}
        configured = self._connections.config(removal.host).image_directories.values()
        directories = [each for each in configured if not each.startswith("/dev/")]
        for image in removal.images:
            wanted = {
                "image": image.path,
                "named": image.named,
                "identity": image.identity,
                "directories": directories,
            }
            (*_, said) = await _run(access, "remove", wanted, timeout=_REMOVE)
            if not said.get("done"):
                kept[image.path] = str(said.get("why", "no reason was given"))
        return kept


async def _run(
    access: HostAccess, mode: str, wanted: Mapping[str, Any], *, timeout: float
) -> list[Mapping[str, Any]]:
    """Run the program there; what it says, at least one thing.

    :raise HostError: it could not do it, in its words.
    """
    argv = ["nice", "-n", "19", "python3", "-I", "-c", _PROGRAM, mode]
    done = await access.run(argv, stdin=json.dumps(wanted).encode(), timeout=timeout)
    try:
        said = [json.loads(line) for line in done.stdout.splitlines()]
    except ValueError:
        said = []
    if done.status or not said:
        why = said[-1].get("why") if said else done.complaint
        raise HostError(access.name, f"a disk cannot be read: {why or 'no answer'}")
    return said


def _differing(left: _Digests, right: _Digests) -> Iterator[int]:
    for number in left.by_block.keys() | right.by_block.keys():
        if left.by_block.get(number) != right.by_block.get(number):
            yield number


def _spans(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield sorted numbers as the first and the count of each row of them."""
    first = last = None
    for number in numbers:
        if first is None or last is None or number != last + 1:
            if first is not None and last is not None:
                yield first, last + 1 - first
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last + 1 - first


def _covers(extents: Sequence[tuple[int, int]], part: int) -> bool:
    """Tell whether something was written to that part of a disk."""
    start, end = part * _PART, (part + 1) * _PART
    return any(first < end and last > start for first, last in extents)

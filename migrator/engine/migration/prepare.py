"""Sets both ends up for one migration: capabilities, parameters, and a destination that listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from migrator.core.migration.convergence_state import Abilities
from migrator.core.migration.stream_layout import StreamLayout
from migrator.core.policy import Policy, PostcopyMode
from migrator.errors import CommandFailed, QemuError, Refused
from migrator.ports import MigrationSettings, Qemu, Tuning

#: Capabilities that an earlier user of this QEMU may have left on and that this migration does without: two of
#: them lose guests (late-block-activate and multifd with postcopy, below QEMU 10), the others were not asked for.
_OFF = (
    "auto-converge",
    "background-snapshot",
    "compress",
    "dirty-limit",
    "late-block-activate",
    "mapped-ram",
    "multifd",
    "postcopy-preempt",
    "postcopy-ram",
    "x-colo",
    "xbzrle",
    "zero-copy-send",
)
_MULTIFD, _XBZRLE, MAPPED_RAM = "multifd", "xbzrle", "mapped-ram"
_PREEMPT, _BLOCKTIME = "postcopy-preempt", "postcopy-blocktime"
#: Always on; preflight has seen that both sides have them.
_ON = ("events", "return-path", "pause-before-switchover")
#: More than any link carries: QEMU's own default of 128 MiB/s would be the limit otherwise.
UNLIMITED_BYTES_PER_SECOND = 2**40


async def prepare(
    source: Qemu,
    destination: Qemu,
    *,
    policy: Policy,
    settings: MigrationSettings,
    settings_there: MigrationSettings,
    abilities: Abilities,
    layout: StreamLayout,
    delta_cache_bytes: int,
    limit_seconds: float,
    bandwidth_bytes_per_second: int,
    listen: str,
    return_path: bool,
    mapped: bool = False,
    tell: Callable[[str, str], None],
) -> tuple[str, Abilities, StreamLayout]:
    """Set both ends up; where to migrate to, and what turned out to be possible.

    :param settings: the source's, as they are.
    :param settings_there: the destination's.
    :param layout: channels of the stream; what an end refuses is left out at both.
    :param delta_cache_bytes: memory that the source keeps of pages it has sent, where the layout sends changes alone.
    :param limit_seconds: the downtime limit to begin with.
    :param bandwidth_bytes_per_second: the most the stream may take, to begin with.
    :param return_path: False: one end is a file, which says by itself how far it is.
    :param mapped: one end is a file in which each page has a place of its own.
    :param tell: is told an action and its reason where the policy had to be fallen short of.
    :raise QemuError: an end refused or did not answer; both may have been changed.
    """
    wanted = dict.fromkeys(_OFF, False) | dict.fromkeys(_ON, True)
    wanted |= {"return-path": return_path, MAPPED_RAM: mapped}
    wanted |= {"auto-converge": abilities.throttle, "postcopy-ram": abilities.postcopy}
    if layout.deltas:
        layout = await _send_deltas(source, layout, delta_cache_bytes, tell)
    wanted[_XBZRLE] = layout.deltas
    if layout.multifd:
        layout = await _lay_out(source, destination, layout, tell)
    wanted[_MULTIFD] = layout.multifd
    # A channel of its own for pages that are asked for: they do not stand behind what is sent unasked.
    offered = _PREEMPT in settings.capabilities and _PREEMPT in settings_there.capabilities
    wanted[_PREEMPT] = abilities.postcopy and offered

    async def set_up_destination() -> str:
        present = settings_there.capabilities
        # Of no use to the source, which measures nothing.
        measured = {_BLOCKTIME: True} if abilities.postcopy and _BLOCKTIME in present else {}
        try:
            await destination.enable(_differing(wanted | measured, present))
        except CommandFailed as error:
            # Whether postcopy works there (userfaultfd, memory backend) shows only when it is asked for.
            if policy.postcopy is not PostcopyMode.ALLOW or not wanted["postcopy-ram"]:
                raise
            wanted["postcopy-ram"] = wanted[_PREEMPT] = False
            tell("no-postcopy", f"the destination refuses postcopy, going without: {error.description}")
            await destination.enable(_differing(wanted, present))
        return await destination.listen(listen)

    async def set_up_source() -> None:
        await source.tune(
            Tuning(
                max_bandwidth_bytes_per_second=bandwidth_bytes_per_second,
                downtime_limit_seconds=limit_seconds,
                max_postcopy_bandwidth_bytes_per_second=0,
                throttle_ratio=0.0 if abilities.throttle else None,
            )
        )
        if not abilities.postcopy:
            await source.enable(_differing(wanted, settings.capabilities))

    uri, _ = await together(set_up_destination(), set_up_source())
    if abilities.postcopy:  # only now is it known whether the destination goes along
        await source.enable(_differing(wanted, settings.capabilities))
    return uri, replace(abilities, postcopy=wanted["postcopy-ram"]), layout


async def _send_deltas(
    source: Qemu, layout: StreamLayout, cache_bytes: int, tell: Callable[[str, str], None]
) -> StreamLayout:
    """Give the source the memory that it compares pages with; the plain stream where it refuses.

    :raise QemuError: it does not answer.
    """
    try:
        await source.tune(Tuning(delta_cache_bytes=cache_bytes))
    except CommandFailed as error:
        tell("plain-stream", f"pages are sent whole, as the source refuses anything else: {error}")
        return StreamLayout()
    return layout


async def _lay_out(
    source: Qemu, destination: Qemu, layout: StreamLayout, tell: Callable[[str, str], None]
) -> StreamLayout:
    """Give both ends the channels of the stream; the plain one where an end refuses.

    :raise QemuError: an end does not answer.
    """
    tuning = Tuning(channels=layout.channels, compression=layout.compression)
    try:
        for end in (source, destination):
            await end.tune(tuning)
            await end.enable({_MULTIFD: True})
    except CommandFailed as error:
        tell("plain-stream", f"one plain channel, as one of the ends refuses others: {error}")
        for end in (source, destination):
            await end.enable({_MULTIFD: False})
        return StreamLayout()
    return layout


def _differing(wanted: Mapping[str, bool], present: Mapping[str, bool]) -> dict[str, bool]:
    """Return what has to be sent so that `present` becomes `wanted`; what a QEMU does not know is off there anyway."""
    return {name: state for name, state in wanted.items() if present.get(name, False) is not state}


async def together(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run them at the same time, their first commands in the order given; the first error cancels the rest.

    :raise QemuError: the first error itself, or Refused.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(each, name=f"together {number}") for number, each in enumerate(coroutines)
            ]
    except* (QemuError, Refused) as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]

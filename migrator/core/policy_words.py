"""Sentences for a person about what a policy allows. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.core.policy import (
    Backing,
    BlockJobs,
    Compression,
    CopiedDisks,
    LastResort,
    Policy,
    PostcopyMode,
    Preference,
    SourceImages,
    Start,
    StreamRoute,
    TlsUse,
)
from migrator.units import show_rate, show_ratio, show_seconds


def _time(seconds: float) -> str:
    """Return a time as a person would write it: no fraction that is none, no seconds of a whole minute."""
    return show_seconds(seconds).replace(".0 s", " s").removesuffix(" 0 s")


def allowed(policy: Policy) -> list[str]:
    """Return what may be done to a guest under this policy, the most important first, one sentence each."""
    return [*_while_it_is_copied(policy), *_otherwise(policy), *_disks_and_streams(policy)]


def _while_it_is_copied(policy: Policy) -> Iterator[str]:
    if policy.offline:
        yield "The guest is stopped first and stands still until all of it has been copied."
    else:
        yield f"The guest stands still for {_time(policy.max_downtime_seconds)} at most."
        if policy.max_throttle_ratio:
            yield (
                f"Where it writes too fast it is slowed down, by {show_ratio(policy.max_throttle_ratio)} at most."
            )
        else:
            yield "It is never slowed down."
        match policy.postcopy:
            case PostcopyMode.ALLOW:
                yield (
                    "Where copying does not come to an end it is switched to postcopy: it runs at the target before "
                    "all its memory is there, and is lost if its source dies meanwhile."
                )
            case PostcopyMode.IMMEDIATE:
                yield (
                    "It is switched to postcopy at once: it runs at the target before all its memory is there, and is "
                    "lost if its source dies meanwhile."
                )
            case PostcopyMode.NEVER:
                yield "No postcopy: until the switch all of it is at its source."
        if policy.last_resort is LastResort.PAUSE:
            yield "Where nothing else helps it is stopped until its memory has arrived."
        else:
            yield "Where that is not enough the move is given up, and it stays where it was, unharmed."


def _otherwise(policy: Policy) -> Iterator[str]:
    if policy.saves:
        yield (
            "In an evacuation a guest that cannot leave otherwise is saved into a file, and runs nowhere until it is "
            "loaded."
        )
    if policy.cold:
        yield (
            "A guest that cannot move live is shut down and started anew at the target: what is in its memory is lost. "
            f"One that takes longer than {_time(policy.max_shutdown_seconds)} to shut down stays."
        )
    if policy.max_duration_seconds is not None:
        yield f"A move takes {_time(policy.max_duration_seconds)} at most."
    if policy.max_bandwidth_bytes_per_second is not None:
        yield f"It sends {show_rate(policy.max_bandwidth_bytes_per_second)} at most."
    if policy.start is Start.QUIET:
        yield "It begins at a moment or in an hour in which the guest writes little."
    if policy.prefer is Preference.TIME:
        yield "It ends as soon as it can, also where the downtime could be shorter a little later."
    if policy.block_jobs is BlockJobs.REFUSE:
        yield "A guest with jobs on its disks, such as a backup, is refused; else their end is waited for."


def _disks_and_streams(policy: Policy) -> Iterator[str]:
    if policy.disks is CopiedDisks.ALL:
        yield "All its disks are copied, also those that both hosts share."
    elif policy.disks is CopiedDisks.NONE:
        yield "No disk is copied: a guest with one that is not shared is refused."
    if policy.source_images is SourceImages.REMOVE:
        yield "Images whose contents were copied are removed at the source after a time, once they were compared."
    if policy.backing is Backing.KEEP:
        yield "Copied images keep their base, which both hosts share."
    if policy.tls is TlsUse.REQUIRE:
        yield "Nothing is begun without encryption."
    elif policy.stream is StreamRoute.SSH:
        yield "What goes between the hosts goes through an SSH tunnel."
    elif policy.tls is TlsUse.OFF:
        yield "Nothing is encrypted."
    if policy.compress is Compression.NEVER:
        yield "Nothing is compressed."
    elif policy.compress in (Compression.ZSTD, Compression.XBZRLE):
        yield f"Memory is compressed ({policy.compress})."
    if policy.streams is not None:
        yield f"Memory goes through {policy.streams} channel{'s' * (policy.streams != 1)}."

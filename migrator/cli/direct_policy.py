"""Policy of ``migrator direct``: one of the built-in ones, with what its options override."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from migrator import units
from migrator.cli.direct_command import Request
from migrator.core.policy import (
    MOST_STREAMS,
    BlockJobs,
    Compression,
    CopiedDisks,
    LastResort,
    Policy,
    PostcopyMode,
    Preference,
    Start,
    StreamRoute,
    TlsUse,
    builtin,
)
from migrator.errors import UsageError

_Choice = TypeVar("_Choice", bound=StrEnum)
_Value = TypeVar("_Value")


def policy_of(request: Request) -> Policy:
    """Return the policy that the options ask for.

    :raise UsageError: an option is wrong; says which.
    """
    auto = request.max_bandwidth in (None, "auto")
    policy = builtin(request.policy)
    if policy.cold or policy.saves:
        what = "shuts no guest down and starts none anew" if policy.cold else "saves no guest into a file"
        raise UsageError(
            f"--policy {policy.name}: migrator direct {what}: leave it out, or have the service do it: migrator serve"
        )
    return policy.but(
        max_downtime_seconds=_option("--max-downtime", request.max_downtime, units.seconds),
        max_bandwidth_bytes_per_second=None
        if auto
        else _option("--max-bandwidth", request.max_bandwidth, units.rate),
        max_throttle_ratio=_option("--max-throttle", request.max_throttle, units.ratio),
        postcopy=_choice("--postcopy", request.postcopy, PostcopyMode),
        max_duration_seconds=_option("--max-duration", request.max_duration, units.seconds),
        last_resort=_choice("--last-resort", request.last_resort, LastResort),
        block_jobs=_choice("--block-jobs", request.block_jobs, BlockJobs),
        prefer=_choice("--prefer", request.prefer, Preference),
        start=_choice("--start", request.start, Start),
        max_postcopy_stall_seconds=_option("--max-postcopy-stall", request.max_postcopy_stall, units.seconds),
        tls=_choice("--tls", request.tls, TlsUse),
        stream=_choice("--stream", request.stream, StreamRoute),
        streams=None
        if request.streams in (None, "auto")
        else _option("--streams", request.streams, _streams),
        compress=_choice("--compress", request.compress, Compression),
        disks=_choice("--disks", request.disks, CopiedDisks),
    )


def wait_seconds(request: Request) -> float:
    """Return for how many seconds the destination is waited for where nobody listens there yet.

    :raise UsageError: the option is wrong.
    """
    return _option("--wait", request.wait, units.seconds) or 0.0


def _streams(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"{text!r} is no count: give 1 to {MOST_STREAMS}, or auto")
    return int(text)


def _option(flag: str, text: str | None, read: Callable[[str], _Value]) -> _Value | None:
    if text is None:
        return None
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None


def _choice(flag: str, text: str | None, kind: type[_Choice]) -> _Choice | None:
    if text is None or text in set(kind):
        return None if text is None else kind(text)
    raise UsageError(f"{flag}: {text!r} is none of {', '.join(kind)}")

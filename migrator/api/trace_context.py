"""The trace that a command belongs to: W3C Trace Context, as it comes with HTTP headers and MQTT user properties."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: The names of both, as headers and as user properties.
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]*)?", re.ASCII)
_KEY = r"(?:[a-z0-9][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(f"({_KEY})=({_VALUE})", re.ASCII)
_MOST_MEMBERS = 32
#: What everyone has to pass on; of a longer one the members at its end are left out.
_LONGEST_STATE = 512
#: Of the flags: sampled, and that the trace's id is random.
_KNOWN_FLAGS = 0x03


@dataclass(frozen=True, kw_only=True)
class TraceContext:
    """The span of the caller that something is done for. Only :func:`read` and :func:`of` make them: always valid."""

    #: As 32 and 16 digits of hexadecimal.
    trace_id: str
    span_id: str
    flags: int = 0
    #: What tracing systems pass on among themselves; may be empty.
    state: str = ""

    @property
    def sampled(self) -> bool:
        """The caller records its part of the trace."""
        return bool(self.flags & 1)

    @property
    def parent(self) -> str:
        """Text of ``traceparent``, in version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def read(parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
    """Read the context that a caller has sent; ``None`` where it sent none, or one that the standard says to ignore.

    :param parents: every ``traceparent`` there was: more than one is none.
    :param states: every ``tracestate``, in order. One that is wrong is left out, and the parent stays.
    """
    if len(parents) != 1:
        return None
    match = _PARENT.fullmatch(parents[0].strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if (
        version == "ff"
        or (version == "00" and more is not None)
        or not (int(trace_id, 16) and int(span_id, 16))
    ):
        return None
    return TraceContext(
        trace_id=trace_id,
        span_id=span_id,
        flags=int(flags, 16) & _KNOWN_FLAGS,
        state=_state(",".join(states)),
    )


def of(parent: str | None, state: str | None) -> TraceContext | None:
    """Read the context that a document keeps."""
    return read([parent] if parent else [], [state] if state else [])


def _state(text: str) -> str:
    members: dict[str, str] = {}
    for part in text.split(","):
        if not (part := part.strip(" \t")):
            continue
        match = _MEMBER.fullmatch(part)
        if match is None or match[1] in members:
            return ""
        members[match[1]] = part
    if len(members) > _MOST_MEMBERS:
        return ""
    kept = ""
    for part in members.values():
        longer = f"{kept},{part}" if kept else part
        if len(longer) > _LONGEST_STATE:
            break
        kept = longer
    return kept

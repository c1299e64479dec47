"""Bandwidth of what a postcopy sends unasked: little while the guest waits for pages, else all that there is. Pure.

A page that the guest waits for stands behind what is already in the sockets and on the path, and beside what the
source goes on to send unasked. So that is held back while requests come, and goes at full speed when they have stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Share of the path for what nobody asked for, while the guest waits for pages. QEMU sends it in bursts, behind which
#: requested pages stand: with half of 60 Mbit/s a guest got 500 of those a second, with 0.3 twice as many. With 0.1 the
#: longest silence is no shorter than with 0.15, and the whole takes longer.
_HELD_BACK_RATIO = 0.2
#: Nothing is held back any more once that took as long as all of it would have taken at full speed: a guest that asks
#: for a page now and then for ever would be on its way for ever, and whatever breaks meanwhile is fatal. The speed is
#: the one of the beginning: what a stream that is held back carries may be taken for what its path does, ever less.
_HELD_BACK_AT_MOST_RATIO = 1.0
#: A path is slower than it was thought to be where it is by more than this.
_SLOWER_RATIO = 0.8
#: It has to be quiet for so long before the path is given back, seconds.
_QUIET_SECONDS = 1.0
#: Where all that is left arrives within this, nothing is held back, seconds.
_SOON_SECONDS = 0.3


def forecast_stall(
    *, missing_bytes: float, working_set_bytes: float, path_bytes_per_second: float
) -> float | None:
    """Return the seconds that the guest will wait for pages, at the most likely; ``None`` where too little is known.

    It waits until what it works with has arrived, page by page, as it asks for them.

    :param missing_bytes: what the destination lacks when the guest begins to run there.
    :param working_set_bytes: what the guest was seen to write, or all of its memory where that is not known.
    """
    if path_bytes_per_second <= 0:
        return None
    return min(missing_bytes, working_set_bytes) / path_bytes_per_second


@dataclass(frozen=True, kw_only=True)
class PostcopyBandwidth:
    """State that :func:`step` carries from one look to the next."""

    #: What the path carries, as far as it was seen; 0: not yet.
    path_bytes_per_second: float = 0.0
    #: What QEMU was given, bytes per second; 0 is no limit of its own.
    limit: int = 0
    requests: int = 0
    stall_seconds: float = 0.0
    #: When the guest was last seen to wait.
    waited_at: float | None = None
    #: Until when something may be held back; ``None``: the guest was not looked at yet while it ran, or nothing is
    #: known of the path.
    until: float | None = None


def begin(state: PostcopyBandwidth) -> PostcopyBandwidth:
    """Return the state for the moment at which the guest is told to run: it waits for its first pages at once.

    Until it has them, QEMU may not even answer at the destination, so that no look tells how many it asks for. Nothing
    is held back on a path of which nothing is known.
    """
    return replace(state, limit=int(state.path_bytes_per_second * _HELD_BACK_RATIO))


def step(
    state: PostcopyBandwidth,
    *,
    at_seconds: float,
    requests: int,
    stall_seconds: float | None,
    remaining_bytes: int,
    bandwidth_bytes_per_second: float,
) -> PostcopyBandwidth:
    """Return the state after one more look at a postcopy whose guest runs; :attr:`PostcopyBandwidth.limit` is due.

    :param requests: pages that the destination has asked for so far.
    :param stall_seconds: for how long all of the guest has waited so far; ``None``: not measured.
    :param bandwidth_bytes_per_second: as QEMU measures it now.
    """
    path = state.path_bytes_per_second
    if state.limit == 0:
        path = max(path, bandwidth_bytes_per_second)
    until = state.until
    if until is None and path > 0:
        until = at_seconds + _HELD_BACK_AT_MOST_RATIO * remaining_bytes / path
    waits = (
        requests > state.requests or (stall_seconds or 0.0) > state.stall_seconds or state.waited_at is None
    )
    waited_at = at_seconds if waits or state.waited_at is None else state.waited_at
    quiet = at_seconds - waited_at >= _QUIET_SECONDS
    worth = until is not None and at_seconds <= until and remaining_bytes > path * _SOON_SECONDS
    limit = int(path * _HELD_BACK_RATIO) if worth and not quiet else 0
    return replace(
        state,
        path_bytes_per_second=path,
        until=until,
        # A path that is only now seen to be faster is no reason to tell QEMU again.
        limit=state.limit if limit > _SLOWER_RATIO * state.limit > 0 else limit,
        requests=max(requests, state.requests),
        stall_seconds=max(stall_seconds or 0.0, state.stall_seconds),
        waited_at=waited_at,
    )

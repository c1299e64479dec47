"""Start of a guest whose policy says ``start = "quiet"``: a moment or an hour in which it writes little. Pure.

The guest is measured again and again. It is moved at once when it writes little beside what it usually does; it is
waited for while it may do so before the last safe start, which is the deadline less a pessimistic forecast; and it is
moved then, whatever it does. Where earlier measurements tell of a quieter hour, that is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from migrator.core.guest_experience import GuestExperience
from migrator.units import show_rate

#: A guest that writes no more than this is quiet, whatever it does at other times.
_QUIET_BYTES_PER_SECOND = 2 * 2**20
#: One that writes no more than this share of its usual rate is quiet.
_QUIET_RATIO = 0.25
#: An hour is worth waiting for where the guest writes no more than this share of what it does now.
_WORTH_RATIO = 0.5
#: Where no hour is known to be better, a quiet moment is waited for no longer than this.
_MOMENT_SECONDS = 600.0
#: Between two measurements: for a moment, and for an hour.
_MOMENT_PAUSE_SECONDS, _HOUR_PAUSE_SECONDS = 1.0, 60.0
#: Where no deadline is set it is waited for no longer than this.
LONGEST_SECONDS = 24 * 3600.0
#: Pessimistic forecast: so many whole copies and so many seconds, or so many times what it took last.
_COPIES, _BESIDES_SECONDS, _LAST_FACTOR = 4.0, 60.0, 2.0
#: What a stream is taken to carry where nobody knows.
_UNKNOWN_BYTES_PER_SECOND = 10e6


@dataclass(frozen=True, kw_only=True)
class QuietDecision:
    """Begin, or wait and look again."""

    begin: bool
    #: With ``begin``: why now. Else: what has to end first, as in "waits for … to end".
    text: str
    #: Told apart from others by this: the figures in the text change at every look.
    topic: str = ""
    #: Until it is measured again, seconds.
    pause_seconds: float = 0.0


def last_safe_start(
    deadline: float,
    *,
    memory_bytes: float,
    bytes_per_second: float | None,
    experience: GuestExperience | None,
) -> float:
    """Return the latest moment at which a migration may begin that has to be over at `deadline`.

    :param bytes_per_second: what the stream will carry; ``None``: nobody knows.
    """
    takes = _COPIES * memory_bytes / (bytes_per_second or _UNKNOWN_BYTES_PER_SECOND) + _BESIDES_SECONDS
    if experience is not None and experience.last_move is not None:
        takes = max(takes, _LAST_FACTOR * experience.last_move.seconds + _BESIDES_SECONDS)
    return deadline - takes


def decide(
    *,
    now: float,
    since: float,
    last_start: float,
    rate_bytes_per_second: float | None,
    usual_bytes_per_second: float,
    experience: GuestExperience | None,
) -> QuietDecision:
    """Decide whether to begin; all times are seconds since the epoch.

    :param since: when the waiting began.
    :param rate_bytes_per_second: as it was just measured; ``None``: it cannot be measured.
    :param usual_bytes_per_second: the highest that was measured since then.
    """
    rate = rate_bytes_per_second
    if now >= last_start:
        return QuietDecision(
            begin=True, text="its last safe start has come: waiting longer endangers its deadline"
        )
    latest = f"it is moved at {_clock(last_start)} at the latest"
    expected = experience.expected_rate(now) if experience is not None else None
    best = experience.quietest_hour(now, last_start) if experience is not None else None
    usual = max(usual_bytes_per_second, expected or 0.0)
    if rate is not None:
        if rate <= _QUIET_BYTES_PER_SECOND or rate <= _QUIET_RATIO * usual:
            return QuietDecision(
                begin=True,
                text=f"the guest is quiet: it writes {show_rate(rate)}, and {show_rate(usual)} at other times",
            )
        present = max(rate, expected or 0.0)
    elif expected is not None:
        present = expected
    else:
        return QuietDecision(begin=True, text="how much the guest writes cannot be measured, nor is it known")
    if best is not None and best[0] > now and best[1] <= _WORTH_RATIO * present:
        coming = f"{show_rate(best[1])} expected from {_clock(best[0])}"
        return QuietDecision(
            begin=False,
            text=f"its busy hours ({show_rate(present)} now, {coming}; {latest})",
            topic=f"until {best[0]:.0f}",
            pause_seconds=min(_HOUR_PAUSE_SECONDS, last_start - now),
        )
    if rate is None or now - since >= _MOMENT_SECONDS:
        return QuietDecision(begin=True, text=f"no quieter time is known: it writes {show_rate(present)}")
    until = min(last_start, since + _MOMENT_SECONDS)
    busy = f"its busy moment ({show_rate(present)} now; it is moved at {_clock(until)} at the latest)"
    return QuietDecision(
        begin=False, text=busy, topic="moment", pause_seconds=min(_MOMENT_PAUSE_SECONDS, until - now)
    )


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"

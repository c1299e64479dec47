"""Speeds of links and paths, learned from the streams of all migrations and kept; and whose turn it is to switch.

A path between two hosts is told apart from what paths share, the link of a host, by who uses them at the same time: a
stream that is held back while no other leaves its source or enters its target tells of the path, streams that are held
back on several paths of one host tell of that host's link.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from migrator.core.link_learning import LEAST_WINDOW_SECONDS, LinkLearning, Window, window
from migrator.core.link_speeds import MOST_OF_PATH_RATIO, LearnedSpeeds, LinkSpeed, StreamCounters
from migrator.engine import clock
from migrator.engine.switch_turns import SwitchTurns

#: Of its documents in the journal, one for each host.
KIND = "path-speeds"
#: A window of a link is no longer than this, and what its streams showed no older, seconds.
_MOST_WINDOW_SECONDS, _FRESH_SECONDS = 1.0, 1.5
#: What is learned is planned with anew where it is different by this much.
_STEP_RATIO = 0.05
#: So often one of the streams that a link holds to a pace goes without it, for so long, seconds; where others share its
#: links for longer, as windows of several streams begin only some time after a change of any pace: each is looked at at
#: times of its own, and what it carried before and after a change is not told apart.
_PROBE_EVERY_SECONDS, _PROBE_SECONDS, _PROBE_BESIDE_OTHERS_SECONDS = 10.0, 1.0, 1.8
_SETTLES_SECONDS = 0.7
#: Two paces that differ by no more than this share are the same.
_SAME_PACE_RATIO = 0.02
#: A path that holds nobody back within so long, seconds, is one that does not; less tells nothing of it.
_PROVING_SECONDS = 2.0
#: While one guest is switched others give way for so long at the most; then not again for it before so many seconds.
_TURN_SECONDS, _TURN_AGAIN_SECONDS = 1.5, 5.0
#: Over a link that is faster than this, bytes per second, nobody gives way: what is left of a guest goes in a moment.
_FAST = 250e6
#: Paths that are kept of one host, those measured last.
_PATHS_KEPT = 200

#: ``out`` or ``into`` and a host, or both ends of a path.
_Link = tuple[str, str]


class PathSpeeds:
    """All links, and the streams that are on them now.

    :param tell: is told what was learned of a host's link, and of the paths from it, where that makes a difference.
    :param keep: has the document of a host written down, by its name.
    :param paces: whether streams are held to what a path of that speed was learned to carry, bytes per second.
    """

    def __init__(
        self,
        *,
        tell: Callable[[str, LearnedSpeeds], None],
        keep: Callable[[str, Callable[[], Mapping[str, Any]]], None],
        paces: Callable[[float], bool] = lambda bytes_per_second: True,
    ) -> None:
        self._tell_of, self._keep_document, self.paces = tell, keep, paces
        self._ends: dict[_Link, LinkLearning] = {}
        self._paths: dict[_Link, LinkLearning] = {}
        #: The targets of :attr:`_paths`, by their sources.
        self._targets: dict[str, set[str]] = {}
        #: Those that leave each host, and that enter it.
        self._leaving: dict[str, set[PathStream]] = {}
        self._entering: dict[str, set[PathStream]] = {}
        #: When the present window of each group of streams began.
        self._since: dict[tuple[str, ...], float] = {}
        self._probed: dict[str, float] = {}
        #: What others were last told of each link, and planned with since.
        self._told: dict[_Link, LinkSpeed] = {}
        self.turns = SwitchTurns()
        #: Whether streams of other controllers leave the first host or enter the second: nothing is learned then.
        self.shared_elsewhere: Callable[[str, str], bool] = lambda source, target: False

    def stream(self, source: str, target: str) -> PathStream:
        """Return a stream that has not begun, of a migration between two hosts."""
        return PathStream(self, source, target)

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take in what was learned before, as the journal has it.

        :raise ValueError: it cannot be read; likewise KeyError, TypeError and AttributeError.
        """
        host = str(saved["id"])
        ends = {end: LinkLearning.from_fields(saved[end]) for end in ("out", "into")}
        paths = {str(target): LinkLearning.from_fields(each) for target, each in saved["to"].items()}
        self._ends |= {(end, host): each for end, each in ends.items()}
        self._paths |= {(host, target): each for target, each in paths.items()}
        self._targets.setdefault(host, set()).update(paths)
        self._tell(host)

    # --- what is known ----------------------------------------------------------------------------------------------

    def learned(self, host: str) -> LearnedSpeeds:
        """Return what was learned of a host's link and of the paths from it."""
        at, nothing = clock.wall(), LinkLearning()
        return LearnedSpeeds(
            out=self._ends.get(("out", host), nothing).speed(at),
            into=self._ends.get(("into", host), nothing).speed(at),
            to={target: self._paths[host, target].speed(at) for target in self._targets.get(host, ())},
        )

    def carries(self, source: str, target: str) -> float | None:
        """Return what all streams between two hosts were seen to be held back at; ``None``: they never were."""
        at = clock.wall()
        known = [each.now(at) for each in self._links(source, target)]
        return min((speed for speed in known if speed is not None), default=None)

    def _links(self, source: str, target: str) -> Iterable[LinkLearning]:
        nothing = LinkLearning()
        yield self._paths.get((source, target), nothing)
        yield self._ends.get(("out", source), nothing)
        yield self._ends.get(("into", target), nothing)

    # --- learning ---------------------------------------------------------------------------------------------------

    def begun(self, stream: PathStream) -> None:
        """Count it among those that share its links."""
        self._leaving.setdefault(stream.source, set()).add(stream)
        self._entering.setdefault(stream.target, set()).add(stream)
        self._begin_windows(stream)

    def ended(self, stream: PathStream) -> None:
        """Count it no more; somebody has gone that way, whatever it showed."""
        if stream not in self._leaving.get(stream.source, ()):
            return
        for streams, host in ((self._leaving, stream.source), (self._entering, stream.target)):
            streams[host].discard(stream)
            if not streams[host]:
                del streams[host]
        self._begin_windows(stream)
        path = (stream.source, stream.target)
        known = self._paths.get(path, LinkLearning())
        if known.measured_at is None:
            self._paths[path] = known.after(Window(bytes_per_second=0.0, limited=False), at=clock.wall())
            self._targets.setdefault(stream.source, set()).add(stream.target)
        for host in path:
            self._tell(host)
            self._keep(host)

    def _begin_windows(self, stream: PathStream) -> None:
        now = clock.now()
        for group in (
            ("out", stream.source),
            ("into", stream.target),
            ("path", stream.source, stream.target),
        ):
            self._since[group] = now

    def saw(self, stream: PathStream) -> None:
        """Learn from what a stream has just shown, together with those that share its links."""
        source, target = stream.source, stream.target
        if self.shared_elsewhere(source, target):
            return
        out, into = [*self._leaving.get(source, ())], [*self._entering.get(target, ())]
        pair = [each for each in out if each.target == target]
        alone = len(out) == len(pair) == len(into)
        held_back = any(each.limited for each in pair)
        if (rate := self._carried(("path", source, target), pair)) is not None:
            seen = Window(bytes_per_second=rate, limited=held_back and alone)
            if seen.limited or stream.lasted_seconds >= _PROVING_SECONDS or self._is_measured(source, target):
                self._targets.setdefault(source, set()).add(target)
                self._learn(self._paths, (source, target), seen, source)
        several = len({each.target for each in out if each.limited}) > 1
        if len(out) > len(pair) and (rate := self._carried(("out", source), out)) is not None:
            self._learn(self._ends, ("out", source), Window(bytes_per_second=rate, limited=several), source)
        several = len({each.source for each in into if each.limited}) > 1
        if len(into) > len(pair) and (rate := self._carried(("into", target), into)) is not None:
            self._learn(self._ends, ("into", target), Window(bytes_per_second=rate, limited=several), target)

    def _is_measured(self, source: str, target: str) -> bool:
        known = self._paths.get((source, target))
        return known is not None and known.measured_at is not None

    def _carried(self, group: tuple[str, ...], streams: list[PathStream]) -> float | None:
        """Return the bytes per second of these streams together, over a window that all of them have shown."""
        now, since = clock.now(), self._since.get(group, -math.inf)
        if len(streams) > 1:
            since = max(since, *(each.steady_since for each in streams))
        until = min(each.shown_until for each in streams)
        if until < now - _FRESH_SECONDS:
            return None
        since = max(since, until - _MOST_WINDOW_SECONDS)
        if until - since < LEAST_WINDOW_SECONDS:
            return None
        self._since[group] = until
        return sum(each.carried(since, until) for each in streams) / (until - since)

    def _learn(self, links: dict[_Link, LinkLearning], link: _Link, seen: Window, host: str) -> None:
        before = links.get(link, LinkLearning())
        links[link] = before.after(seen, at=clock.wall())
        at = clock.wall()
        speed = links[link].speed(at)
        if before.now(at) is None and speed.bytes_per_second is not None:
            self._probed[host] = clock.now()  # it was without a pace until now
        if _different(self._told.get(link, LinkSpeed()), speed):
            self._told[link] = speed
            self._tell(host)

    def _tell(self, host: str) -> None:
        self._tell_of(host, self.learned(host))

    def _keep(self, host: str) -> None:
        self._keep_document(host, lambda: self._document(host))

    def _document(self, host: str) -> dict[str, Any]:
        nothing = LinkLearning()
        paths = [(target, self._paths[host, target]) for target in self._targets.get(host, ())]
        paths.sort(key=lambda one: one[1].measured_at or 0.0)
        return {
            "id": host,
            "out": self._ends.get(("out", host), nothing).fields(),
            "into": self._ends.get(("into", host), nothing).fields(),
            "to": {target: each.fields() for target, each in paths[-_PATHS_KEPT:]},
        }

    # --- probing, and giving way ------------------------------------------------------------------------------------

    def others(self, stream: PathStream) -> list[PathStream]:
        """Return the other streams that share a link with it."""
        leaving, entering = self._leaving.get(stream.source, set()), self._entering.get(stream.target, set())
        return [each for each in leaving | entering if each is not stream]

    def may_probe(self, stream: PathStream) -> bool:
        """Tell whether it is time that this stream goes without a pace, and then it is its turn."""
        now = clock.now()
        if now - self._probed.get(stream.source, -math.inf) < _PROBE_EVERY_SECONDS:
            return False
        if stream.bytes_per_second is None:
            return False
        self._probed[stream.source] = now
        return True

    def take_turn(self, stream: PathStream) -> bool:
        """See :meth:`migrator.engine.migration.shared_path.SharedPath.take_turn`."""
        speed = self.carries(stream.source, stream.target)
        if speed is None or speed > _FAST:
            return True
        if not self.turns.take(stream):
            return False
        self._tell_others(stream)
        return True

    def end_turn(self, stream: PathStream) -> None:
        """Let those go on that gave way to this one."""
        if self.turns.end(stream):
            self._tell_others(stream)

    def _tell_others(self, stream: PathStream) -> None:
        for each in self.others(stream):
            each.changed()


class PathStream:
    """One stream. Implements :class:`migrator.engine.migration.shared_path.SharedPath`."""

    def __init__(self, speeds: PathSpeeds, source: str, target: str) -> None:
        self._speeds = speeds
        self.source, self.target = source, target
        #: The path held it back in its last window, and nothing else did.
        self.limited = False
        self.changed: Callable[[], None] = lambda: None
        self._last: StreamCounters | None = None
        #: The least that its pace and QEMU's limit allowed since then; 0: neither was set.
        self._most = 0.0
        #: What they allowed at the last look, and since when it has carried what that lets it, on our clock.
        self._allowed, self.steady_since = 0.0, -math.inf
        self._began = math.inf
        #: On our clock: what was acknowledged by then, the last seconds.
        self._points: deque[tuple[float, int]] = deque()
        #: Our clock beside that of the host that counts: by the answer that came soonest, as others came late.
        self._offset = math.inf
        self._probes_until = -math.inf
        self._turn_not_before = -math.inf
        self._turn_timer: asyncio.TimerHandle | None = None

    @property
    def bytes_per_second(self) -> float | None:
        """See the protocol."""
        carries = self._speeds.carries(self.source, self.target)
        return carries if carries is not None and self._speeds.paces(carries) else None

    @property
    def probes(self) -> bool:
        """See the protocol."""
        now = clock.now()
        if now >= self._probes_until and self._speeds.may_probe(self):
            beside = bool(self._speeds.others(self))
            self._probes_until = now + (_PROBE_BESIDE_OTHERS_SECONDS if beside else _PROBE_SECONDS)
        return now < self._probes_until

    @property
    def attainable_bytes_per_second(self) -> float:
        """See the protocol."""
        count = len(self._speeds.others(self)) + 1
        if count == 1:
            return 0.0
        # Each of the others keeps a fourth of an even share at least: see core/schedule/sharing.py.
        kept = (count - 1) / (4 * count)
        return (self.bytes_per_second or 0.0) * MOST_OF_PATH_RATIO * (1 - kept)

    @property
    def yields(self) -> bool:
        """See the protocol."""
        return self._speeds.turns.gives_way(self)

    @property
    def has_turn(self) -> bool:
        """See the protocol."""
        return self._speeds.turns.has(self)

    @property
    def lasted_seconds(self) -> float:
        """Return for how long it was looked at."""
        return max(0.0, clock.now() - self._began)

    def begin(self) -> None:
        """See the protocol."""
        self._speeds.begun(self)

    def on_change(self, changed: Callable[[], None]) -> None:
        """See the protocol."""
        self.changed = changed

    def note(self, counters: StreamCounters, *, most: float) -> None:
        """See the protocol."""
        last = self._last
        if last is None or counters.acknowledged_bytes < last.acknowledged_bytes:
            self._points.clear()  # it begins, or was opened anew
            self._begin_window(counters, most)
            self._speeds.begun(self)
            return
        self._point(counters)
        if abs(most - self._allowed) > _SAME_PACE_RATIO * max(most, self._allowed):
            self._allowed, self.steady_since = most, clock.now() + _SETTLES_SECONDS
        if most:
            self._most = min(self._most or most, most)
        seen = window(last, counters, most=self._most)
        if seen is None:
            return
        self.limited = seen.limited
        self._last, self._most = counters, most
        self._speeds.saw(self)

    def _begin_window(self, counters: StreamCounters, most: float) -> None:
        self._last, self._most, self.limited = counters, most, False
        self._began, self._allowed, self.steady_since = clock.now(), most, clock.now() + _SETTLES_SECONDS
        self._point(counters)

    def _point(self, counters: StreamCounters) -> None:
        now = clock.now()
        self._offset = min(self._offset, now - counters.at)
        self._points.append((counters.at + self._offset, counters.acknowledged_bytes))
        while len(self._points) > 2 and self._points[1][0] < now - 2 * _FRESH_SECONDS:
            self._points.popleft()

    @property
    def shown_until(self) -> float:
        """Return until when it is known what it carried, on our clock."""
        return self._points[-1][0] if self._points else -math.inf

    def carried(self, since: float, until: float) -> float:
        """Return the bytes acknowledged between two moments, as far as it was looked at then."""
        return max(0.0, self._acknowledged(until) - self._acknowledged(since))

    def _acknowledged(self, at: float) -> float:
        before = self._points[0]
        for point in self._points:
            if point[0] >= at:
                if point[0] <= before[0]:
                    return point[1]
                return before[1] + (point[1] - before[1]) * (at - before[0]) / (point[0] - before[0])
            before = point
        return before[1]

    def take_turn(self) -> bool:
        """See the protocol."""
        now = clock.now()
        if self._turn_timer is not None:
            return True
        if now < self._turn_not_before:
            return not self.yields
        if not self._speeds.take_turn(self):
            return False
        self._turn_timer = asyncio.get_running_loop().call_later(_TURN_SECONDS, self.end_turn)
        return True

    def end_turn(self) -> None:
        """See the protocol."""
        if self._turn_timer is not None:
            self._turn_timer.cancel()
            self._turn_timer = None
            self._turn_not_before = clock.now() + _TURN_AGAIN_SECONDS
        self._speeds.end_turn(self)

    def close(self) -> None:
        """See the protocol."""
        self.end_turn()
        self._speeds.ended(self)


def _different(before: LinkSpeed, now: LinkSpeed) -> bool:
    """Tell whether it is enough of a change to plan anew."""
    if before.measured != now.measured or (before.bytes_per_second is None) != (now.bytes_per_second is None):
        return True
    old, new = before.bytes_per_second or before.at_least, now.bytes_per_second or now.at_least
    # What a path carries at the least says the less, the more it is.
    step = _STEP_RATIO if now.bytes_per_second is not None else 1.0
    return abs(new - old) > step * old

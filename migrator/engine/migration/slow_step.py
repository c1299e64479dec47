"""Step of a preparation that takes long: told, so that nobody wonders at a host that is far away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from migrator.ports import Qemu
from migrator.units import show_seconds

#: A step that takes no longer is not worth telling, seconds.
_SLOW_SECONDS = 1.0
#: A round trip that takes no longer is none that a step waits for.
_FAR_SECONDS = 0.02


class SlowStep:
    """The step that is under way, told where it takes long.

    :param tell: is called when there is something new in :attr:`waiting_for`.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        #: What the step waits for; empty where it does not take long.
        self.waiting_for = ""

    @contextmanager
    def step(self, what: str, *ends: Callable[[], Qemu | None]) -> Iterator[None]:
        """Tell so after a second of what is done inside.

        :param ends: give the QEMUs that are asked, as far as they are known then.
        """

        def told() -> None:
            found = [end() for end in ends]
            far = max((end.least_round_trip_seconds for end in found if end is not None), default=0.0)
            trips = f", where each question takes {show_seconds(far)}" if far >= _FAR_SECONDS else ""
            self.waiting_for = f"{what}{trips}"
            self._tell()

        timer = asyncio.get_running_loop().call_later(_SLOW_SECONDS, told)
        try:
            yield
        finally:
            timer.cancel()
            self.waiting_for = ""

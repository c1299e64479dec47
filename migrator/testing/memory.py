"""Memory of a simulated guest: what is queued to be sent, and what was written to since QEMU last looked."""

from __future__ import annotations

import math
from typing import Protocol

from migrator.testing.workload import PAGE_BYTES, Region, Workload

#: On the wire: a page with its header, and a page that is known to be zero.
_PAGE_WIRE_RATIO = (PAGE_BYTES + 8) / PAGE_BYTES
_ZERO_WIRE_RATIO = 9 / PAGE_BYTES
#: Of the pages that a sweeping guest misses in postcopy it has to ask for so many; the rest come by themselves.
_SWEEP_ASKS_RATIO = 0.07
#: Ranges that lie closer together than this are one.
_ROUNDING = 1e-3


class _Pages(Protocol):
    """A region's dirty bitmap and the guest's writes to it."""

    #: To be sent, as QEMU's bitmap knows it.
    queued: float

    def fill(self) -> None:
        """Queue all pages; nothing was written to since."""

    def write(self, count: float) -> None:
        """Let the guest write to so many bytes of pages."""

    def sync(self) -> float:
        """Queue what was written to; return how much of it was not queued yet."""

    def take(self, most: float) -> float:
        """Send so much at most; return how much it was."""


class _Scattered:
    """Memory written to at random: every page is as likely to be dirty as any other."""

    def __init__(self, region: Region) -> None:
        self.queued = 0.0
        self._region = region
        self._size = float(region.size_bytes)
        self._written = 0.0

    def fill(self) -> None:
        self.queued, self._written = self._size, 0.0

    def write(self, count: float) -> None:
        self._written += count

    def sync(self) -> float:
        new = self._region.distinct_bytes(self._written) * (1 - self.queued / self._size)
        self._written = 0.0
        self.queued += new
        return new

    def take(self, most: float) -> float:
        taken = min(self.queued, most)
        self.queued -= taken
        return taken


class _Swept:
    """Memory written to from one end to the other, again and again, while QEMU sends it in the same manner."""

    def __init__(self, size: float) -> None:
        self.queued = 0.0
        self._size = size
        #: Queued ranges, in order and apart.
        self._ranges: list[tuple[float, float]] = []
        self._written = 0.0
        self._guest_at = 0.0
        self._sender_at = 0.0

    def fill(self) -> None:
        self._ranges = [(0.0, self._size)]
        self.queued, self._written, self._sender_at = self._size, 0.0, 0.0

    def write(self, count: float) -> None:
        self._written += count
        self._guest_at = (self._guest_at + count) % self._size

    def sync(self) -> float:
        written, self._written = self._written, 0.0
        if written >= self._size:
            added = [(0.0, self._size)]
        elif self._guest_at >= written:
            added = [(self._guest_at - written, self._guest_at)]
        else:
            added = [(0.0, self._guest_at), (self._guest_at - written + self._size, self._size)]
        merged: list[tuple[float, float]] = []
        for start, end in sorted(self._ranges + added):
            if merged and start <= merged[-1][1] + _ROUNDING:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        before = self.queued
        self._set(merged)
        return self.queued - before

    def take(self, most: float) -> float:
        left = min(most, self.queued)
        taken = left
        ahead = [(max(start, self._sender_at), end) for start, end in self._ranges if end > self._sender_at]
        behind = [
            (start, min(end, self._sender_at)) for start, end in self._ranges if start < self._sender_at
        ]
        turn = ahead + behind
        while turn and left > 0:
            start, end = turn.pop(0)
            step = min(left, end - start)
            left -= step
            self._sender_at = start + step
            if step < end - start:
                turn.insert(0, (start + step, end))
        self._set(sorted(turn))
        return taken

    def _set(self, ranges: list[tuple[float, float]]) -> None:
        self._ranges = [(start, end) for start, end in ranges if end - start > _ROUNDING]
        self.queued = math.fsum(end - start for start, end in self._ranges)


def _pages(region: Region) -> _Pages:
    return _Scattered(region) if region.random else _Swept(region.size_bytes)


class Memory:
    """Memory accounted for by sums and ranges, so that its size costs nothing.

    :param total_bytes: what the workload does not use is zero.
    """

    def __init__(self, workload: Workload, total_bytes: int) -> None:
        used = workload.working_bytes + workload.constant_bytes
        if used > total_bytes:
            raise ValueError(f"a workload of {used} bytes does not fit into {total_bytes}")
        self.workload = workload
        self.total_bytes = total_bytes
        #: On the guest's own clock.
        self.guest_seconds = 0.0
        #: Written to in all, every page counted each time; what lies in the background left out.
        self.work_bytes = 0.0
        #: What the guest got done, as the time it would have taken undisturbed.
        self.work_seconds = 0.0
        #: Written to in each region since :meth:`probe` was called last.
        self._probed = [0.0] * len(workload.regions)
        self._zero = self._constant = 0.0
        self._pages = [_pages(region) for region in workload.regions]

    @property
    def queued_bytes(self) -> float:
        """Bytes to be sent, as QEMU's bitmap knows them."""
        return self._zero + self._constant + sum(pages.queued for pages in self._pages)

    def queue_all(self) -> None:
        """Queue all of it; nothing has been written to since."""
        self._constant = float(self.workload.constant_bytes)
        self._zero = float(self.total_bytes - self.workload.working_bytes) - self._constant
        for pages in self._pages:
            pages.fill()

    def forward(self, seconds: float, speed_ratio: float) -> None:
        """Let the guest run for so long (its clock goes on), and write at this share of its pace."""
        end = self.guest_seconds + seconds
        self.work_seconds += seconds * speed_ratio
        while self.guest_seconds < end:
            rates, until = self.workload.rates_at(self.guest_seconds)
            step = min(end, until) - self.guest_seconds
            for index, rate in enumerate(rates):
                self._write(index, rate * step * speed_ratio)
            self.guest_seconds = min(end, until)

    def _write(self, index: int, written: float) -> None:
        self._pages[index].write(written)
        self._probed[index] += written
        if not self.workload.regions[index].background:
            self.work_bytes += written

    def forward_missing(self, seconds: float, page_seconds: float, fault_seconds: float) -> float:
        """Let the guest run in postcopy, waiting for each page that is missing; return how many were asked for.

        :param page_seconds: what a page takes on the link; a guest that sweeps waits no longer, as QEMU goes on
            with what follows a page that was asked for.
        :param fault_seconds: the way there and back for one that does not.
        """
        rates, _ = self.workload.rates_at(self.guest_seconds)
        self.guest_seconds += seconds
        wanted = done = asked = 0.0
        for pages, region, rate in zip(self._pages, self.workload.regions, rates, strict=True):
            if rate <= 0:
                continue
            missing = pages.queued / region.size_bytes
            wait = page_seconds + (fault_seconds if region.random else 0.0)
            # The time one page takes: its own, and with some probability the wait for it.
            written = seconds / (PAGE_BYTES / rate + missing * wait)
            if not region.background:
                self.work_bytes += written * PAGE_BYTES
            wanted += seconds * rate / PAGE_BYTES
            done += written
            asked += written * missing * (1.0 if region.random else _SWEEP_ASKS_RATIO)
        self.work_seconds += seconds * (done / wanted if wanted else 1.0)
        return asked

    def probe(self) -> float:
        """Return the distinct bytes written to since the last call, which is when the first probe begins."""
        pairs = zip(self.workload.regions, self._probed, strict=True)
        found = sum(region.distinct_bytes(written) for region, written in pairs)
        self._probed = [0.0] * len(self._probed)
        return found

    def sync(self) -> float:
        """Look at the dirty bitmap: queue what was written to since the last look, and return how much of it is new."""
        return sum(pages.sync() for pages in self._pages)

    def take(self, wire_bytes: float) -> float:
        """Send up to so many bytes of pages that are not zero; return how many there were."""
        most = wire_bytes / _PAGE_WIRE_RATIO
        taken = min(self._constant, most)
        self._constant -= taken
        for pages in self._pages:
            if taken < most and pages.queued:
                taken += pages.take(most - taken)
        return taken * _PAGE_WIRE_RATIO

    def take_zero(self, seconds: float, bytes_per_second: float) -> tuple[float, float]:
        """Send zero pages for up to so long, once nothing else is queued; return bytes on the wire and seconds."""
        if self._zero <= 0 or self._zero < self.queued_bytes:
            return 0.0, 0.0
        taken = min(self._zero, seconds * bytes_per_second)
        self._zero -= taken
        return taken * _ZERO_WIRE_RATIO, taken / bytes_per_second

    def take_all(self) -> float:
        """Send everything; return the bytes on the wire."""
        pages, zero = self.queued_bytes - self._zero, self._zero
        for one in self._pages:
            one.take(math.inf)
        self._constant = self._zero = 0.0
        return pages * _PAGE_WIRE_RATIO + zero * _ZERO_WIRE_RATIO

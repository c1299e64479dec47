"""Which of QEMU's ways of measuring a dirty rate is asked for, and when; on real QEMUs: tests/integration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from migrator.errors import CommandFailed
from migrator.qemu.address import Address
from migrator.qemu.dirty_rate import DirtyRate
from migrator.qemu.monitor import Monitor

KVM = {"enabled": True, "present": True}
TCG = {"enabled": False, "present": True}


class Answering(Monitor):
    """A session with nobody, that answers and refuses by heart.

    :param refuses: modes of calc-dirty-rate.
    """

    def __init__(
        self, *, kvm: Any = KVM, migrate: Mapping[str, Any] | None = None, refuses: tuple[str, ...] = ()
    ) -> None:
        super().__init__(
            Address(kind="unix", path="/nowhere"), name="source", on_event=_nothing, on_break=lambda: None
        )
        self.refuses = refuses
        self.given: list[dict[str, Any]] = []
        self._answers: dict[str, Any] = {"query-kvm": kvm, "query-migrate": migrate or {}}

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = 5.0,
        oob: bool = False,
    ) -> Any:
        if command == "calc-dirty-rate":
            assert arguments is not None
            self.given.append(dict(arguments))
            if arguments["mode"] in self.refuses:
                raise CommandFailed("source", command, "GenericError", "it is not enabled")
            return {}
        if (answer := self._answers[command]) is None:
            raise CommandFailed("source", command, "CommandNotFound", "there is no such command")
        return answer

    @property
    def modes(self) -> list[str]:
        return [each["mode"] for each in self.given]


def _nothing(message: Mapping[str, Any]) -> None:
    pass


async def started(monitor: Answering, *, exact: bool = True) -> list[str]:
    await DirtyRate().start(monitor, 1.0, exact=exact)
    return monitor.modes


@pytest.mark.parametrize("status", [None, "none", "completed", "failed", "cancelled"])
async def test_every_page_is_counted_under_kvm_where_nothing_is_migrated(status: str | None) -> None:
    migrate = {} if status is None else {"status": status}
    assert await started(Answering(migrate=migrate)) == ["dirty-bitmap"]


@pytest.mark.parametrize(
    "status",
    [
        "setup",
        "active",
        "pre-switchover",
        "device",
        "postcopy-active",
        "postcopy-paused",
        "cancelling",
        "new",
    ],
)
async def test_pages_are_sampled_while_anything_is_migrated(status: str) -> None:
    assert await started(Answering(migrate={"status": status})) == ["page-sampling"]


@pytest.mark.parametrize("kvm", [TCG, {"present": True}, {}, None], ids=str)
async def test_pages_are_sampled_where_kvm_is_not_seen_to_be_enabled(kvm: Any) -> None:
    assert await started(Answering(kvm=kvm)) == ["page-sampling"]


async def test_pages_are_sampled_where_something_blocks_a_migration() -> None:
    migrate = {"blocked-reasons": ["a device keeps no log"]}
    assert await started(Answering(migrate=migrate)) == ["page-sampling"]


async def test_pages_are_sampled_unless_more_is_asked_for() -> None:
    assert await started(Answering(), exact=False) == ["page-sampling"]


async def test_a_refusal_is_remembered_once_the_other_way_was_taken() -> None:
    monitor, probe = Answering(refuses=("dirty-bitmap",)), DirtyRate()
    await probe.start(monitor, 1.0, exact=True)
    await probe.start(monitor, 1.0, exact=True)
    assert monitor.modes == ["dirty-bitmap", "page-sampling", "page-sampling"]


async def test_a_refusal_of_both_says_nothing_about_either() -> None:
    monitor, probe = Answering(refuses=("dirty-bitmap", "page-sampling")), DirtyRate()
    with pytest.raises(CommandFailed):
        await probe.start(monitor, 1.0, exact=True)
    monitor.refuses = ()
    await probe.start(monitor, 1.0, exact=True)
    assert monitor.modes == ["dirty-bitmap", "page-sampling", "dirty-bitmap"]


@pytest.mark.parametrize(("seconds", "whole"), [(0.1, 1), (1.0, 1), (2.6, 3)])
async def test_the_period_is_whole_seconds_and_one_at_least(seconds: float, whole: int) -> None:
    monitor = Answering()
    await DirtyRate().start(monitor, seconds, exact=True)
    assert monitor.given == [{"calc-time": whole, "mode": "dirty-bitmap"}]


async def test_a_ring_is_never_put_to_use() -> None:
    """It is what a guest with a ring would have beside sampling, and a ring that fills may stop it for good."""
    assert "dirty-ring" not in await started(Answering(refuses=("dirty-bitmap",)))

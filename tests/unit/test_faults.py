"""Errors of our own are contained: said with an id that the log has, and nothing else ends because of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from migrator import faults, logs
from migrator.core.inventory import Host
from migrator.engine.inventory import Inventory
from migrator.errors import Fault, HostError, QemuError
from migrator.faults import contained, keep_going

pytestmark = pytest.mark.looptime


@pytest.fixture(autouse=True)
def logged() -> Any:
    logs.configure(verbose=True, json=True)
    yield
    logs.configure(verbose=False, json=False)


def test_one_is_said_with_an_id_under_which_the_log_has_its_traceback_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = r"^the look: an error of migrator itself \(KeyError: 'addr_info'\);"
    with pytest.raises(Fault, match=said) as caught, contained("the look"):
        raise KeyError("addr_info")
    log = capsys.readouterr().err
    assert log.count(caught.value.id) == 1
    assert "Traceback" in log
    assert caught.value.id in str(caught.value)


def test_what_is_raised_on_purpose_passes_in_a_group_too() -> None:
    with pytest.raises(HostError), contained("it"):
        raise HostError("a", "is down")
    with pytest.raises(QemuError, match="gone"), contained("it"):
        raise ExceptionGroup("two", [ExceptionGroup("one", [QemuError("q", "gone")]), HostError("a", "x")])
    with pytest.raises(Fault), contained("it"):
        raise ExceptionGroup("two", [QemuError("q", "gone"), ValueError()])


async def test_being_cancelled_is_no_fault() -> None:
    with pytest.raises(asyncio.CancelledError), contained("it"):
        raise asyncio.CancelledError


async def test_a_task_that_fails_begins_anew_after_a_pause_that_grows_and_says_what_is_wrong() -> None:
    loop, began = asyncio.get_running_loop(), []

    async def work() -> None:
        began.append(round(loop.time()))
        if len(began) == 4:
            assert "ZeroDivisionError" in faults.complaints["a task"]
            return
        raise ZeroDivisionError

    at = loop.time()
    await keep_going("a task", work)
    assert [round(each - at) for each in began] == [0, 1, 3, 7]
    assert "a task" not in faults.complaints


async def test_a_host_whose_look_fails_in_us_is_down_with_the_reason_and_the_others_are_not() -> None:
    class BadSite:
        async def look(self, host: str) -> Any:
            if host == "bad":
                raise KeyError("addr_info")
            raise HostError(host, "is away")

    inventory = Inventory([Host(name="bad"), Host(name="good")], site=BadSite())  # type: ignore[arg-type]
    await inventory.look_at_all()
    bad, good = inventory.hosts()
    assert not bad.up
    assert "the look at host bad: an error of migrator itself (KeyError: 'addr_info')" in bad.error
    assert "is away" in good.error

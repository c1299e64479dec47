"""Two controllers on one PostgreSQL and one broker: both take commands, one publishes, and none is lost with either."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import until
from migrator.testing.postgresql import Postgres
from tests.acceptance.service_site import eventually, made
from tests.acceptance.test_takeover import ask_second, standing_by
from tests.broker import USERS, Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import peer

HOSTS = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


def at(broker: Broker) -> str:
    """Both controllers, each with its own host's name for an instance."""
    return (
        f'[site]\nname = "site"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nusername = "migrator"\n'
        f'password = "{USERS["migrator"]}"\noperators = ["scheduler"]\ntimeout = "2s"\nkeepalive = "3s"'
    )


async def test_commands_go_to_both_and_those_of_one_that_is_killed_are_carried_out_by_the_other(
    postgresql: Postgres, broker: Broker
) -> None:
    url = postgresql.place(postgresql.create()).url
    async with made([], *HOSTS, extra=at(broker)) as site, peer(broker) as scheduler:
        site.change_config(("[store]\n", f'[controller]\nlease = "3s"\n\n[store]\nurl = "{url}"\n'))
        first = site.serve()
        await site.until_served()
        await site.known(0)
        async with standing_by(site):
            await eventually(
                lambda: asyncio.sleep(0, len(site.said("connected")) == 2), "both are at the broker", site
            )
            for number in range(6):
                await scheduler.command("evacuate", id=f"c{number}", host=HOSTS[number % 3])
            await until(
                lambda: all(scheduler.replies(f"c{number}") for number in range(6)),
                what="a reply to each",
                within=60,
            )
            first_replies = [scheduler.replies(f"c{number}")[0] for number in range(6)]
            begun = {
                f"c{number}": each for number, each in enumerate(first_replies) if each["kind"] == "accepted"
            }
            # The second is what is said of a command that a busy machine has not carried out in 20 s.
            said = {each["code"] for each in first_replies if each["kind"] == "refused"}
            assert said <= {"conflict", "unavailable"}

            def ended(name: str) -> list[Any]:
                return [reply["body"] for reply in scheduler.replies(name) if reply["kind"] == "outcome"]

            await until(lambda: all(map(ended, begun)), what="each outcome", within=60)
            assert [len(ended(name)) for name in begun] == [1] * len(begun), "the one that acts tells it"
            for host in HOSTS:
                runs = sorted(
                    (body["created_at"], body["ended_at"])
                    for name in begun
                    for body in ended(name)
                    if body["host"] == host
                )
                assert runs, f"{host} is emptied"
                # The second command may come when the first is done: an empty host is soon emptied.
                assert all(one[1] <= next_[0] for one, next_ in pairwise(runs)), "by one of them at a time"

            os.killpg(first.pid, signal.SIGKILL)
            for number in range(10, 16):
                await scheduler.command("activate", id=f"c{number}", host=HOSTS[number % 3])
            await ask_second(site)
            await until(
                lambda: all(scheduler.replies(f"c{number}") for number in range(10, 16)),
                what="a reply to each, those in the session of the dead one too",
                within=60,
            )
            assert {scheduler.replies(f"c{number}")[0]["kind"] for number in range(10, 16)} == {"accepted"}

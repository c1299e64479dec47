"""What a restore will do to guests is said before it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.cli import remote
from migrator.cli.client import ServiceClient
from migrator.cli.output import OutputForm
from migrator.cli.restoring import asked_for

STILL = "The guest is stopped first and stands still until all of it has been copied."


def past(kind: str = "evacuate", policy: str = "", *, standing: str = "moved", **more: Any) -> dict[str, Any]:
    left = int(standing != "moved")
    guests = [{"standing": standing}]
    given = {"kind": kind, "policy": policy, "state": "completed", "ended_at": "then", "guests_left": left}
    return {**given, "guests": guests, **more}


@pytest.mark.parametrize(
    ("evacuations", "names"),
    [
        ([past(policy="offline")], ["offline"]),
        ([past()], []),
        ([past(policy="offline", standing="stayed")], []),
        ([past(policy="offline", state="scheduled", ended_at=None), past(policy="cold")], ["cold"]),
        ([past(policy="cold"), past(policy="offline"), past(policy="cold")], ["cold", "offline"]),
        ([past(policy="cold"), past("restore", "gentle"), past(policy="offline")], ["cold"]),
        ([past("restore", "offline", standing="stayed"), past(policy="cold")], ["offline"]),
        ([past("restore", "offline"), past(policy="cold")], []),
    ],
)
def test_policies_are_those_of_whom_the_restore_brings_home(
    evacuations: list[dict[str, Any]], names: list[str]
) -> None:
    assert asked_for(evacuations) == names


@pytest.mark.parametrize("named", [None, "gentle"])
def test_that_guests_will_stand_still_is_said_before_the_restore_is_asked_for(
    named: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    answers = {
        "evacuations": {"items": [past(policy="offline")]},
        "policies": {"items": [{"name": "offline", "allows": [STILL]}]},
    }

    def post(path: str, _: Any) -> dict[str, Any]:
        assert path == "hosts/a/restore"
        said.append(capsys.readouterr().out)
        shown: dict[str, Any] = {
            "id": "r1",
            "host": "a",
            "error": "",
            "deadline": None,
            "forecast_end_at": None,
        }
        return past("restore", "offline", **shown, guests=[])

    client = cast(ServiceClient, SimpleNamespace(get=lambda path, **_: answers[path], post=post))
    remote.restore(client, "a", named, wait=False, output=OutputForm.TABLE)
    assert (STILL in said[0], "by the policy offline" in said[0]) == (named is None, named is None)

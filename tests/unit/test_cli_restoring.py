"""What a restore will do to guests is said before it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.cli import remote
from migrator.cli.client import Rejected, ServiceClient
from migrator.cli.output import OutputForm

STILL = "The guest is stopped first and stands still until all of it has been copied."
BEGUN: dict[str, Any] = {
    "id": "r1",
    "kind": "restore",
    "host": "a",
    "state": "running",
    "policy": "offline",
    "error": "",
    "ended_at": None,
    "deadline": None,
    "forecast_end_at": None,
    "guests": [],
    "guests_left": 2,
}
BY_OFFLINE = {"policy": "offline", "guests": 2, "allows": [STILL]}
BY_THEIR_OWN = {"policy": "", "guests": 1, "allows": []}


def plan(*policies: dict[str, Any]) -> dict[str, Any]:
    return {"host": "a", "guests": sum(each["guests"] for each in policies), "policies": list(policies)}


def restored(
    capsys: pytest.CaptureFixture[str], *answers: Any, output: OutputForm = OutputForm.TABLE
) -> tuple[list[Any], str]:
    """Return what was asked for, and what was said before the restore itself was."""
    asked: list[Any] = []
    said: list[str] = []
    left = list(answers)

    def post(path: str, body: Any) -> Any:
        assert path == "hosts/a/restore"
        asked.append(body)
        said.append(capsys.readouterr().out)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = cast(ServiceClient, SimpleNamespace(post=post))
    remote.restore(client, "a", None, wait=False, output=output)
    return asked, said[-1]


def test_that_guests_will_stand_still_is_said_before_the_restore_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked, said = restored(capsys, plan(BY_OFFLINE, BY_THEIR_OWN), BEGUN)
    assert asked == [{"policy": None, "dry_run": True}, {"policy": None}]
    assert said.splitlines() == [
        "3 guests come home to a:",
        "    2 by the policy offline (another: --policy NAME)",
        f"        {STILL}",
        "    1 by its own policy",
    ]


def test_a_service_that_cannot_say_it_restores_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    older = Rejected(422, "invalid", "dry_run: there is no such field", [])
    asked, said = restored(capsys, older, BEGUN)
    assert (asked[-1], said) == ({"policy": None}, "")


def test_a_program_is_told_of_the_restore_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert restored(capsys, BEGUN, output=OutputForm.JSON)[0] == [{"policy": None}]


def test_a_host_that_nobody_is_away_from_only_becomes_active(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = restored(capsys, plan(), BEGUN)
    assert said == "no guest is away from a: only its maintenance ends\n"

"""The service that the command line asks does not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.cli.client import Client, NotReachable


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[str]:
    """Takes connections, as a process that was stopped does, and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        yield f"unix:{tmp_path}/api.sock"


def test_one_that_is_stuck_is_not_told_to_be_started(stuck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrator.cli.client._READ_SECONDS", 0.2)
    with pytest.raises(NotReachable, match=r"gives no answer: it is busy or stuck; see journalctl") as said:
        Client(stuck).get("hosts")
    assert "start it" not in str(said.value)


def test_a_command_may_have_been_taken_a_question_not(stuck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrator.cli.client._AGAIN_SECONDS", 0.0)
    client = Client(stuck, patience_seconds=0.2)
    with pytest.raises(NotReachable, match="may have taken the command"):
        client.post("hosts/a/evacuate", {})
    with pytest.raises(NotReachable, match=r"journalctl -u migrator$"):
        client.post("plans", {"host": "a"})

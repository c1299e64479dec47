"""The service that the command line asks does not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.cli import direct_network
from migrator.cli.client import NotReachable, ServiceClient
from migrator.errors import UsageError
from migrator.qemu import address


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[str]:
    """Takes connections, as a process that was stopped does, and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        yield f"unix:{tmp_path}/api.sock"


def test_one_that_is_stuck_is_not_told_to_be_started(stuck: str) -> None:
    with pytest.raises(NotReachable, match=r"gives no answer: it is busy or stuck; see journalctl") as said:
        ServiceClient(stuck, timeout_seconds=0.2).get("hosts")
    assert "start it" not in str(said.value)


def test_a_command_may_have_been_taken_a_question_not(stuck: str) -> None:
    client = ServiceClient(stuck, timeout_seconds=0.2, again_seconds=0.0)
    with pytest.raises(NotReachable, match="may have taken the command"):
        client.post("hosts/a/evacuate", {})
    with pytest.raises(NotReachable, match=r"journalctl -u migrator$"):
        client.post("plans", {"host": "a"})


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("https://10.66.0.999:8443", "999 in it is more than 255"),
        ("https://host:99999", "Port out of range"),
        ("https://host:http", "no address"),
        ("https://[fd66::2", "no address"),
        ("https://[10.0.0.1]:1", "no address"),
        ("https://", "write unix:PATH, https://HOST:PORT"),
        ("10.0.0.1:8443", "write unix:PATH, https://HOST:PORT"),
    ],
)
def test_server_that_is_none_is_refused_at_once(server: str, words: str) -> None:
    with pytest.raises(UsageError, match="--server: ") as refused:
        ServiceClient(server)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("tcp:10.66.0.999:0", "999 in it is more than 255"),
        ("tcp:fd66::2:0", "write [fd66::2]:0"),
        ("tcp:[10.0.0.1]:0", "brackets are for IPv6 only: write 10.0.0.1:0"),
        ("tcp:0.0.0.0:0", "is where to listen, not where to be reached"),
        ("tcp:10.0.0.1:65536", "there is no port 65536"),
        ("tcp:10.0.0.1", "has no port: write 10.0.0.1:PORT"),
        ("10.0.0.1:0", "write tcp:ADDR:PORT"),
        ("unix:/x", "write tcp:ADDR:PORT"),
    ],
)
def test_where_to_take_the_stream_is_refused_at_once(listen: str, words: str) -> None:
    with pytest.raises(UsageError, match="--listen: ") as refused:
        direct_network.listen_uri(listen, address.parse("tcp:10.0.0.1:1"))
    assert words in str(refused.value)


def test_where_to_take_the_stream_is_taken() -> None:
    there = address.parse("tcp:[fd66::2]:1")
    assert direct_network.listen_uri(None, there) == "tcp:[fd66::2]:0"
    assert direct_network.listen_uri("tcp:[fe80::1%eth0]:49152", there) == "tcp:[fe80::1%eth0]:49152"

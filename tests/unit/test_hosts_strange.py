"""Whatever a host prints, reading it ends soon, with what it shows or with a HostError in words."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from migrator.errors import HostError
from migrator.hosts import host_files, managers, path_links, process_identity, sockets
from migrator.hosts.access import HostCommand, Output, run_together
from migrator.hosts.customary_places import customary_places
from migrator.hosts.facts import parse, read_facts
from migrator.hosts.guest_network import parse_links, read_guest_taps
from migrator.hosts.listening import read_listening
from migrator.hosts.local import LocalAccess
from migrator.hosts.memory_usage import read_memory_usage
from migrator.hosts.processes import guest_name, uuid_of
from migrator.hosts.run_directories import RunDirectory
from migrator.hosts.target_survey import survey_target
from migrator.hosts.thread_scheduling import read_scheduling
from migrator.ports import GuestProcess

PID = os.getpid()
NEST = RunDirectory(path="/run/migrator/guests/x-abcdef", log="/dev/null")
Read = Callable[[Any], Coroutine[Any, Any, object]]

READERS: dict[str, Read] = {
    "facts": lambda host: read_facts(host, address="127.0.0.1"),
    "survey of sockets": lambda host: sockets.survey_host(host, ["/run/*.sock", "/tmp/*"]),
    "sockets": lambda host: sockets.find_sockets(host, ["/run/*", "/tmp/*"]),
    "carriers": lambda host: read_guest_taps(host, [PID]),
    "learned": lambda host: read_guest_taps(host, [PID], learned_on=("lo",)),
    "listening": lambda host: read_listening(host, [PID]),
    "resident": lambda host: read_memory_usage(host, [PID]),
    "threads": lambda host: read_scheduling(host, PID),
    "managers": lambda host: managers.read_processes(host, [PID]),
    "files": lambda host: host_files.read_host_files(
        host, host_files.FileQuery(paths=("/etc/passwd", "/tmp"), images={"/x": "raw"}, pid=PID)
    ),
    "process": lambda host: process_identity.read_process(host, PID, paths=["/etc/passwd"]),
    "target": lambda host: survey_target(
        host, source_pid=PID, binaries=("sh", "sh"), base="/run/x", paths=["/a"]
    ),
    "listener": lambda host: sockets.find_listener(host, "/run/x.sock", PID),
    "places": customary_places,
    "two at once": lambda host: run_together(host, [HostCommand(argv=["true"])], timeout=5.0),
    "links": lambda host: path_links.read_links(host, NEST),
    "made links": lambda host: path_links.make_links(host, NEST),
}


class Said:
    """A host that says what it is told to."""

    name = "strange"

    process_script = "echo"

    def __init__(self, stdout: bytes) -> None:
        self._stdout = stdout

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        return Output(status=0, stdout=self._stdout, stderr=b"")

    async def forward(self, socket: str) -> str:
        return socket

    async def process(self, pid: int, read: Output | None = None) -> GuestProcess | None:
        return None

    async def close(self) -> None:
        pass


class Overheard(LocalAccess):
    """This machine; what it said last is kept."""

    said = b""

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        output = await super().run(argv, timeout=timeout, stdin=stdin)
        self.said = output.stdout
        return output


@cache
def real(name: str) -> bytes:
    """What this machine says."""
    host = Overheard("here")
    try:
        asyncio.run(READERS[name](host))
    except HostError:
        pass  # in a container, or of one that is not there: what it said is all that is wanted
    return host.said


def read(name: str, stdout: bytes) -> None:
    began = time.process_time()
    said = ""
    try:
        asyncio.run(READERS[name](Said(stdout)))
    except HostError as error:
        said = str(error)
    assert len(said) < 700
    assert time.process_time() - began < 3.0


JUNK = st.one_of(
    st.sampled_from(
        [
            *(b"", b"\0", b"\n", b" ", b"-1", b"x y", b"9" * 5000, b"\xff\xfe", b"\xed\xa0\x80", b"\xc2\xb2"),
            *(b"[1, 2]", b'[{"ifname": 5}]', b'[{"ifname": "a"}]', b"[" * 20_000, b"{}", b"null", b"NaN"),
            b"0-99999999999",
        ]
    ),
    st.binary(max_size=20),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(READERS)), data=st.data())
def test_a_mutated_answer_is_read_or_refused_in_words(name: str, data: st.DataObject) -> None:
    text = real(name)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        if data.draw(st.booleans()):  # a whole field, or a whole line
            stop = data.draw(st.sampled_from([b"\0", b"\n", b" ", b'"', b","]))
            at = text.rfind(stop, 0, at) + 1
            end = text.find(stop, at)
            end = len(text) if end < 0 else end
        else:
            end = min(len(text), at + data.draw(st.integers(0, 30)))
        text = text[:at] + data.draw(JUNK) + text[end:]
    read(name, text)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(READERS)), text=st.binary(max_size=300))
@example(name="sockets", text=b"x y\0@table\0\0@held\0\0@arguments\0\0@stats\0@end\0")
@example(name="sockets", text=b"@table\0\0@held\0x y\n\0@arguments\0\0@stats\0@end\0")
@example(name="links", text=b"odd\0")
def test_junk_is_refused_in_words(name: str, text: bytes) -> None:
    read(name, text)


@pytest.mark.parametrize("name", sorted(READERS))
def test_what_this_machine_says_is_read(name: str) -> None:
    read(name, real(name))


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(READERS)), data=st.data())
def test_many_mutated_answers_are_read_or_refused_in_words(name: str, data: st.DataObject) -> None:
    test_a_mutated_answer_is_read_or_refused_in_words.hypothesis.inner_test(name, data)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "shown", ["[1, 2]", '[{"ifname": 5}]', '[{"ifname": "a", "addr_info": 3}]', "[{", "[[[" * 10_000]
)
def test_interfaces_that_are_none_are_no_facts(shown: str) -> None:
    wrong = "Input should|EOF|recursion limit"
    with pytest.raises(ValueError, match=wrong):
        parse(f"\n@@links\n{shown}\n@@end\n")
    with pytest.raises(ValueError, match=wrong):
        parse_links("[]", shown.replace("addr_info", "vlans"))


def test_an_interface_without_addresses_has_none() -> None:
    facts = parse('\n@@links\n[{"ifname": "br0"}, {}]\n@@end\n')
    assert facts.interfaces == {"br0"}
    assert facts.addresses == frozenset()


def test_a_table_made_to_cost_a_search_without_end_is_read_soon() -> None:
    entry = "u_str ESTAB 0 0 " + "1 " * 200_000 + "<-> ino:1 dev:0/2 "
    read("sockets", f"@table\0{entry}\0@held\0\0@arguments\0\0@stats\0@end\0".encode())


def test_names_and_numbers_of_a_command_line_are_checked() -> None:
    assert uuid_of(["-uuid", "\udcff\ud800"]) == ""
    assert guest_name("guest=a\udcffb") == "a\ufffdb"
    assert len(guest_name("x" * 3_000_000)) == 4096

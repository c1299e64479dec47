"""Names and addresses of hosts: what is none is refused where it is read, with what was meant."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import addresses
from migrator.errors import UsageError

GOOD = [
    *("10.66.0.2", "0.0.0.0", "255.255.255.255", "fd66::2", "::", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"),
    *(
        "fd66:0:0:0:0:0:0:2",
        "host-1",
        "host_1.example",
        "a.b.c.",
        "localhost",
        "xn--mnchen-3ya.example",
        "1a",
        "7.example",
    ),
    "a" * 63,
]
BAD = {
    "": "it is empty",
    "[fd66::2]": "write it without brackets: fd66::2",
    "[fd66::2": "it is no IPv6 address",
    "10.66.0.2/24": "that is a network: write 10.66.0.2",
    "fd66::/64": "that is a network: write fd66::",
    "10.66.0.999": "999 in it is more than 255",
    "10.66.0": "an IPv4 address is four numbers of 0 to 255",
    "10.66.0.2.3": "an IPv4 address is four numbers",
    "10.66.0.": "an IPv4 address is four numbers",
    "10..0.2": "an IPv4 address is four numbers",
    "10.66.0.02": "may mean an octal number: write 10.66.0.2",
    "167772161": "an IPv4 address is four numbers",
    "0x0a000001": "an IPv4 address is four numbers",
    "10.66.0.2:4444": "a port has no place in it: write 10.66.0.2",
    "host-1:22": "a port has no place in it: write host-1",
    "[fd66::2]:22": "a port has no place in it: write fd66::2",
    "fd66::2::3": "it is no IPv6 address",
    "fd66::12345": "it is no IPv6 address",
    "fd66:1": "a port has no place in it: write fd66",
    "g::1": "it is no IPv6 address",
    "fe80::1%": "is no interface",
    "fe80::1%eth 0": "there is a blank in it",
    "10.0.0.1 ": "there is a blank in it",
    "host 1": "there is a blank in it",
    "host\n1": "there is a blank in it",
    "root@host-1": "a user has no place in it: write host-1",
    "tcp://10.0.0.1:5": "that is a URL: write 10.0.0.1",
    "https://[fd66::2]/x": "that is a URL: write fd66::2",
    "-host": "'-host' in it is no part of a name",
    "host-": "'host-' in it is no part of a name",
    "host..example": "two dots in a row",
    ".example": "two dots in a row",
    "host.999": "the last part of a name is no number",
    "münchen.example": "write it as the name system does: xn--mnchen-3ya.example",
    "a;b": "'a;b' in it is no part of a name",
    "a" * 64: "in it is no part of a name",
    ".".join(["a" * 60] * 5): "at most 253 characters",
}


@pytest.mark.parametrize("text", GOOD)
def test_what_is_one_is_taken_as_it_is(text: str) -> None:
    assert addresses.host(text) == text


@pytest.mark.parametrize(("text", "words"), BAD.items())
def test_what_is_none_is_refused_with_what_was_meant(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        addresses.host(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError):
        addresses.reachable(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0", "is where to listen"),
        ("::", "is where to listen"),
        ("224.0.0.1", "is the address of many"),
        ("ff02::1", "is the address of many"),
        ("255.255.255.255", "is the address of many"),
        ("fe80::1", "add the interface, fe80::1%eth0"),
    ],
)
def test_no_other_host_reaches_these(text: str, words: str) -> None:
    assert addresses.host(text) == text
    with pytest.raises(UsageError, match=words):
        addresses.reachable(text)


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "fd66::2", "fe80::1%eth0", "host-1", "127.0.0.1", "169.254.1.1"]
)
def test_others_may_reach_these(text: str) -> None:
    assert addresses.reachable(text) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.1:4444", ("10.0.0.1", 4444)),
        ("[fd66::2]:4444", ("fd66::2", 4444)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("host-1:65535", ("host-1", 65535)),
    ],
)
def test_host_and_port(text: str, found: tuple[str, int]) -> None:
    assert addresses.host_port(text) == found
    assert f"{addresses.bracketed(found[0])}:{found[1]}" == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fd66::2:4444", r"write \[fd66::2\]:4444 or \[fd66::2:4444\]:PORT"),
        ("fd66:1:2:3:4:5:6:7:4444", r"write \[fd66:1:2:3:4:5:6:7\]:4444"),
        ("fd66::2", r"write \[fd66::2\]:PORT|write \[fd66::\]:2 or \[fd66::2\]:PORT"),
        ("[10.0.0.1]:4444", "brackets are for IPv6 only: write 10.0.0.1:4444"),
        ("10.0.0.1", "has no port: write 10.0.0.1:PORT"),
        ("10.0.0.1:", "there is no port"),
        ("10.0.0.1:0", "they go from 1 to 65535"),
        ("10.0.0.1:65536", "there is no port 65536"),
        ("10.0.0.1:http", "there is no port http"),
        ("10.0.0.1:-1", "there is no port -1"),
        (":4444", r"has no host: write 127.0.0.1:4444 or \[::\]:4444"),
        ("10.0.0.999:1", "999 in it is more than 255"),
        ("[fd66::2]4444", "is no HOST:PORT|brackets"),
        ("a:b:c", "is no HOST:PORT"),
    ],
)
def test_what_is_no_host_and_port(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        addresses.host_port(text)
    assert "\n" not in str(refused.value)


@given(st.ip_addresses())
def test_every_address_is_one_and_none_of_its_misspellings(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    text = str(address)
    assert addresses.host(text) == text
    for wrong in (
        f"[{text}]",
        f"{text}/24",
        f" {text}",
        f"{text}:",
        f"x@{text}",
        f"{text}.",
        f"http://{text}",
    ):
        with pytest.raises(UsageError):
            addresses.host(wrong)


@given(st.text(max_size=300))
def test_whatever_is_taken_is_a_name_or_an_address(text: str) -> None:
    for parse in (addresses.host, addresses.reachable, addresses.host_port):
        try:
            parse(text)
        except UsageError as error:
            said = str(error)
        else:
            said = ""
            assert text.isascii()
            assert not any(char.isspace() or char in "/@" for char in text)
        assert said.isprintable()

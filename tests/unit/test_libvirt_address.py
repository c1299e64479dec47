"""Addresses of libvirt's guests as a person types them."""

from __future__ import annotations

import re

import pytest

from migrator.cli.libvirt_address import parse
from migrator.errors import UsageError


@pytest.mark.parametrize(
    "text",
    [
        "qemu:///system?guest=web",
        "qemu:///system?socket=/run/libvirt/libvirt-sock&guest=web%20shop",
        "qemu:///session?socket=/run/user/1000/libvirt/libvirt-sock&guest=web",
        "qemu+ssh://kvm-2/system",
        "qemu+ssh://root@kvm-2/system?guest=web",
        "qemu+ssh://root@[fe80::1]/system?socket=/run/libvirt/libvirt-sock",
    ],
)
def test_what_is_typed_is_what_is_shown(text: str) -> None:
    assert str(parse(text)) == text


def test_a_socket_of_this_machine_may_be_said_to_be_one() -> None:
    assert parse("qemu+unix:///system?guest=web") == parse("qemu:///system?guest=web")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("qemu+tcp://kvm-2/system", "can be reached"),
        ("qemu://kvm-2/system", "another host"),
        ("qemu+ssh:///system", "names no host"),
        ("qemu+ssh://kvm-2:2222/system", "~/.ssh/config"),
        ("qemu+ssh://kvm-2:x/system", "no address"),
        ("qemu:///system?guest=", "guest and a socket"),
        ("qemu:///system?guest=a&guest=b", "guest and a socket"),
        ("qemu:///system?guest=a&keyfile=/k", "guest and a socket"),
        ("qemu:///elsewhere?guest=a", "neither the system's"),
        ("qemu:///session?guest=a", "socket"),
        ("qemu:///system?socket=sock&guest=a", "absolute"),
        ("qemu:system", "neither the system's"),
    ],
)
def test_what_is_none_is_refused_in_one_line(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)) as told:
        parse(text)
    assert "\n" not in str(told.value)

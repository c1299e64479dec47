"""Where the libvirt of a host is, as a person writes it, and what is kept of its guests."""

from __future__ import annotations

import pytest

from migrator.core.inventory import Guest
from migrator.core.managed_guest import SYSTEM_SOCKETS, DaemonAddress, ManagedDomain, place_of, uuid_at


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("off", None),
        ("auto", DaemonAddress(optional=True)),
        ("qemu:///system", DaemonAddress()),
        ("qemu+unix:///system?socket=/run/l", DaemonAddress(sockets=("/run/l",))),
        ("qemu:///session?socket=/run/u/v", DaemonAddress(sockets=("/run/u/v",), instance="session")),
    ],
)
def test_address_of_a_daemon_is_what_it_says(text: str, address: DaemonAddress | None) -> None:
    assert DaemonAddress.parse(text) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("qemu+ssh://root@host/system", "leads to another host"),
        ("qemu://host/system", "leads to another host"),
        ("xen:///system", "no address of libvirt's QEMU driver"),
        ("yes", "no address of libvirt's QEMU driver"),
        ("9" * 4000, "^.{,250}$"),
        ("qemu:///session", "takes its socket"),
        ("qemu:///embed?root=/x", "neither the system's libvirt nor a user's"),
        ("qemu:///system?socket=run/l", "no absolute path"),
    ],
)
def test_what_is_no_address_of_it_is_refused_with_what_to_write(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DaemonAddress.parse(text)


def test_modular_daemon_is_asked_before_the_monolithic_one() -> None:
    assert [path.rpartition("/")[2] for path in SYSTEM_SOCKETS] == ["virtqemud-sock", "libvirt-sock"]


def test_uri_for_the_client_leads_to_the_socket_as_it_is_here() -> None:
    address = DaemonAddress()
    assert address.uri("/tmp/a b/1") == "qemu+unix:///system?socket=/tmp/a%20b/1"


def test_place_of_a_guest_of_libvirt_is_told_from_a_monitors_path() -> None:
    assert uuid_at(place_of("u-1")) == "u-1"
    assert uuid_at("/run/qemu/a.qmp") is None


def test_guest_comes_back_from_its_fields_with_what_libvirt_said_of_it() -> None:
    domain = ManagedDomain(
        persistent=False, snapshots=2, block_jobs=("vda",), host_devices=("pci 0000:01:00.0",)
    )
    guest = Guest(key="u", host="a", domain=domain)
    assert Guest.from_fields(guest.fields()) == guest
    assert ManagedDomain.from_fields({"persistent": True, "of-a-newer-version": 1}) == ManagedDomain()

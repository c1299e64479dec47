"""Whether a stream is encrypted, by what both hosts have and the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from migrator.core.policy import Policy, StreamRoute, TlsUse, builtin
from migrator.core.preflight.stream_tls import StreamTls, TlsChoice, TlsEnd, choose
from migrator.core.process.certificates import Certificate, HostCertificates
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.testing.fake_qemu import FakeQemu

NOW = 1_000_000_000.0
DAY = 86_400.0


def certificate(**different: Any) -> Certificate:
    usual: dict[str, Any] = {
        "subjects": ("CN=a",),
        "names": ("b", "10.0.0.2", "*.site"),
        "begins": NOW - DAY,
        "expires": NOW + 100 * DAY,
        "authority": "ours",
    }
    return Certificate(**{**usual, **different})


WHOLE = HostCertificates(
    directory="/pki",
    authorities=frozenset({"ours"}),
    authorities_expire=NOW + 1000 * DAY,
    server=certificate(),
    client=certificate(),
    server_key=True,
    client_key=True,
)
NOTHING = HostCertificates(directory="/pki")


def chosen(
    here: HostCertificates | None = WHOLE,
    there: HostCertificates | None = WHOLE,
    *,
    use: TlsUse = TlsUse.PREFER,
    names: tuple[str, ...] = ("b",),
    policy: Policy | None = None,
) -> TlsChoice:
    return choose(
        policy or builtin("default").but(tls=use),
        TlsEnd(host="a", certificates=here),
        TlsEnd(host="b", certificates=there, names=names),
        now=NOW,
    )


def test_certificates_that_both_take_encrypt_it() -> None:
    tls = StreamTls(source_directory="/pki", destination_directory="/pki", hostname="b", subjects=("CN=a",))
    assert chosen() == TlsChoice(tls=tls)
    assert chosen(use=TlsUse.REQUIRE) == TlsChoice(tls=tls)


def test_first_name_of_the_target_that_its_certificate_is_for_is_checked() -> None:
    for names, name in ((("x", "10.0.0.2"), "10.0.0.2"), (("h.site", "b"), "h.site"), (("B",), "B")):
        tls = chosen(names=names).tls
        assert tls is not None
        assert tls.hostname == name
    assert chosen(names=("deep.h.site", "10.0.0.20")).tls is None


@pytest.mark.parametrize(
    ("here", "there", "code"),
    [
        (NOTHING, NOTHING, None),
        (WHOLE, NOTHING, "tls-plain"),
        (NOTHING, WHOLE, "tls-plain"),
        (replace(WHOLE, client=None, client_key=False), WHOLE, "tls-plain"),
        (WHOLE, replace(WHOLE, server_key=False), "tls-plain"),
        (None, WHOLE, None),
    ],
)
def test_what_is_missing_leaves_it_plain_unless_encryption_is_required(
    here: HostCertificates | None, there: HostCertificates, code: str | None
) -> None:
    preferred = chosen(here, there)
    assert preferred.tls is None
    assert [each.code for each in preferred.findings] == ([code] if code else [])
    required = chosen(here, there, use=TlsUse.REQUIRE)
    assert required.tls is None
    assert [each.code for each in required.findings] == ["tls-required"]


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (replace(WHOLE, client=certificate(expires=NOW)), WHOLE, "a: /pki/client-cert.pem has expired"),
        (
            WHOLE,
            replace(WHOLE, server=certificate(begins=NOW + 1)),
            "b: /pki/server-cert.pem is not valid yet",
        ),
        (WHOLE, replace(WHOLE, authorities_expire=NOW - 1), "b: /pki/ca-cert.pem has expired"),
        (
            WHOLE,
            replace(WHOLE, server=certificate(authority="")),
            "b: /pki/server-cert.pem is signed by no authority",
        ),
        (
            WHOLE,
            replace(WHOLE, server=certificate(authority="theirs"), authorities=frozenset({"ours", "theirs"})),
            "b: /pki/server-cert.pem is signed by another authority than those that a trusts",
        ),
        (
            replace(WHOLE, client=certificate(authority="theirs"), authorities=frozenset({"ours", "theirs"})),
            WHOLE,
            "a: /pki/client-cert.pem is signed by another authority than those that b trusts",
        ),
        (WHOLE, replace(WHOLE, server=certificate(names=("c",))), "is for c, not for b"),
        (
            replace(WHOLE, client=certificate(subjects=())),
            WHOLE,
            "the name in /pki/client-cert.pem has parts",
        ),
        (
            replace(WHOLE, problems=("ca-cert.pem cannot be read",)),
            WHOLE,
            "a: /pki/ca-cert.pem cannot be read",
        ),
    ],
)
def test_what_would_be_refused_is_refused_before(
    here: HostCertificates, there: HostCertificates, words: str
) -> None:
    for use, code in ((TlsUse.PREFER, "tls-certificate"), (TlsUse.REQUIRE, "tls-required")):
        found = chosen(here, there, use=use)
        assert found.tls is None
        assert [each.code for each in found.findings] == [code]
        assert words in found.findings[0].message


def test_one_that_expires_soon_is_used_and_said() -> None:
    soon = chosen(replace(WHOLE, client=certificate(expires=NOW + 3.5 * DAY)))
    assert soon.tls is not None
    assert [(each.code, "of a in /pki expire in 3 d" in each.message) for each in soon.findings] == [
        ("tls-expires", True)
    ]


def test_nothing_is_encrypted_where_that_is_off() -> None:
    assert chosen(use=TlsUse.OFF) == TlsChoice()


def test_what_goes_through_an_ssh_tunnel_is_not_encrypted_once_more() -> None:
    assert chosen(policy=builtin("default").but(stream=StreamRoute.SSH)) == TlsChoice()


@pytest.mark.looptime
async def test_target_is_waited_for_that_computes_a_group_for_diffie_hellman() -> None:
    async with FakeQemu(incoming=True) as qemu:
        answered: list[str] = []

        def compute(command: str, identity: Any) -> None:
            del identity
            answered.append(command)
            qemu.answer_late(12.0 if command == "object-add" and answered.count(command) == 1 else 0.0)

        qemu.answer_with(compute)
        end = Endpoint(Address(kind="unix", path=str(qemu.qmp)), role="destination", driver=None)
        try:
            await end.connect()
            tls = StreamTls(
                source_directory="/pki", destination_directory="/pki", hostname="b", subjects=("CN=a",)
            )
            await end.encrypt("1234", tls)
        finally:
            await end.close()
    assert answered[-3:] == ["object-add", "object-add", "migrate-set-parameters"]

"""Tokens: shown once, kept as hashes, refused once expired or revoked."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Role
from migrator.errors import UsageError
from migrator.store.backend import Place
from migrator.store.journal import SqlJournal
from migrator.store.tokens import ROLES, Tokens
from tests.journals import run_sql


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def journal(place: Place, clock: Clock) -> AsyncIterator[SqlJournal]:
    async with await SqlJournal.open(place, now=clock) as journal:
        yield journal


@pytest.fixture
def tokens(journal: SqlJournal) -> Tokens:
    return journal.tokens


async def gives(tokens: Tokens, secret: str) -> tuple[str, str] | None:
    grant = await tokens.verify(secret)
    return None if grant is None else (grant.name, grant.role)


async def test_a_token_is_good_for_its_name_and_role(tokens: Tokens) -> None:
    grafana = await tokens.create(name="grafana", role="viewer")
    ann = await tokens.create(name="ann", role="operator")
    assert grafana != ann
    assert await gives(tokens, grafana) == ("grafana", "viewer")
    assert await gives(tokens, ann) == ("ann", "operator")


async def test_a_token_may_be_limited_to_hosts_and_so_are_its_sessions(tokens: Tokens) -> None:
    secret = await tokens.create(name="drain", role="operator", hosts=["host-7", "rack-3-*"])
    grant = await tokens.verify(secret)
    assert grant is not None
    assert grant.hosts == ("host-7", "rack-3-*")
    session, begun = await tokens.begin_session(grant, seconds=60)
    assert begun.hosts == grant.hosts
    again = await tokens.session(session)
    assert again is not None
    assert again.hosts == grant.hosts
    assert [each.hosts for each in await tokens.list()] == [("host-7", "rack-3-*")]
    for wrong in ([], ["no host"]):
        with pytest.raises(UsageError):
            await tokens.create(name="none", role="operator", hosts=wrong)


async def written(place: Place) -> bytes:
    """Whatever is there of tokens and sessions."""
    if isinstance(place, Path):
        return b"".join(each.read_bytes() for each in place.parent.iterdir() if each.is_file())
    found = [await run_sql(place, f"SELECT * FROM {table}") for table in ("tokens", "sessions")]
    return repr(found).encode()


async def test_its_secret_is_written_nowhere(tokens: Tokens, place: Place) -> None:
    secret = (await tokens.create(name="ann", role="operator")).split("_")[2]
    assert len(bytes.fromhex(secret)) == 32
    there = await written(place)
    assert b"operator" in there
    assert secret.encode() not in there
    assert bytes.fromhex(secret) not in there
    assert secret not in repr(await tokens.list())


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
        lambda token: token + "0",
        lambda token: token[:-1],
        lambda token: token.upper(),
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token.replace("migrator_", ""),
        lambda token: "migrator_" + "0" * 12 + token[21:],
        lambda token: token.split("_")[2],
        lambda token: f"migrator_{token.split('_')[1]}_{'0' * 64}",
        lambda token: "",
        lambda token: "x" * 100_000,
        lambda token: "\udc80",
        lambda token: f"migrator_{chr(0x660) * 12}_{chr(0x660) * 64}",  # digits too, but not ours
    ],
)
async def test_another_is_refused(tokens: Tokens, change: object) -> None:
    token = await tokens.create(name="ann", role="operator")
    assert callable(change)
    assert await tokens.verify(change(token)) is None
    assert await tokens.verify(token) is not None


async def test_a_hash_is_always_compared_in_constant_time(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await tokens.create(name="ann", role="operator")
    compared: list[int] = []
    truly = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append(len(one) + len(other))
        return truly(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (token, "nonsense", "migrator_" + "0" * 12 + "_" + "0" * 64):
        await tokens.verify(given)
    assert compared == [128] * 3


async def test_it_is_refused_from_the_moment_it_expires(tokens: Tokens, clock: Clock) -> None:
    expires = clock() + timedelta(days=1)
    token = await tokens.create(name="ann", role="operator", expires_at=expires)
    clock.time = expires - timedelta(microseconds=1)
    assert await gives(tokens, token) == ("ann", "operator")
    clock.time = expires
    assert await tokens.verify(token) is None
    (shown,) = await tokens.list()
    assert (shown.expires_at, shown.revoked_at, shown.valid(clock())) == (expires, None, False)


@pytest.mark.parametrize("by", ["id", "name"])
async def test_it_is_refused_as_soon_as_it_is_revoked(tokens: Tokens, clock: Clock, by: str) -> None:
    token = await tokens.create(name="ann", role="operator")
    other = await tokens.create(name="bob", role="viewer")
    revoked = await tokens.revoke("ann" if by == "name" else token.split("_")[1])
    assert revoked.name == "ann"
    assert await tokens.verify(token) is None
    assert await gives(tokens, other) == ("bob", "viewer")
    assert {each.name: each.revoked_at for each in await tokens.list()} == {"ann": clock(), "bob": None}
    with pytest.raises(UsageError, match="there is no token 'ann' to revoke"):
        await tokens.revoke("ann")


async def test_a_name_may_be_used_again_once_its_token_is_not_valid(tokens: Tokens, clock: Clock) -> None:
    first = await tokens.create(name="ann", role="operator", expires_at=clock() + timedelta(hours=1))
    with pytest.raises(UsageError, match="there is a valid token of the name 'ann'"):
        await tokens.create(name="ann", role="viewer")
    clock.time += timedelta(hours=2)
    second = await tokens.create(name="ann", role="viewer")
    assert (await gives(tokens, first), await gives(tokens, second)) == (None, ("ann", "viewer"))


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ann\n", "ann/7", "\u00e4nn"])
async def test_a_name_is_one_that_can_stand_anywhere(tokens: Tokens, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a token's name"):
        await tokens.create(name=name, role="viewer")


async def test_what_makes_no_sense_is_refused(tokens: Tokens, clock: Clock) -> None:
    with pytest.raises(UsageError, match="there is no role 'root'; there are viewer and operator"):
        await tokens.create(name="ann", role="root")
    with pytest.raises(UsageError, match="would have expired already"):
        await tokens.create(name="ann", role="viewer", expires_at=clock())
    assert await tokens.list() == []


async def test_one_made_beside_the_service_counts_at_once(
    tokens: Tokens, journal: SqlJournal, place: Place
) -> None:
    async with await Tokens.open(place) as beside:
        token = await beside.create(name="ann", role="operator")
        assert await gives(tokens, token) == ("ann", "operator")
        await beside.revoke("ann")
        assert await tokens.verify(token) is None
    assert journal.complaint == ""


def test_the_roles_are_those_of_the_commands() -> None:
    assert set(ROLES) == set(Role)


class TestSession:
    """What the page has instead of the token."""

    async def begun(self, tokens: Tokens, *, seconds: float = 3600, **token: Any) -> tuple[str, str]:
        secret = await tokens.create(name="ann", role="operator", **token)
        grant = await tokens.verify(secret)
        assert grant is not None
        return secret, (await tokens.begin_session(grant, seconds=seconds))[0]

    async def test_is_neither_the_token_nor_written_anywhere(self, tokens: Tokens, place: Place) -> None:
        token, session = await self.begun(tokens)
        assert session not in token
        assert await tokens.verify(session) is None
        assert await tokens.session(token) is None
        found = await tokens.session(session)
        assert found is not None
        assert (found.name, found.role) == ("ann", "operator")
        assert session.encode() not in await written(place)

    async def test_ends_by_itself_and_never_after_its_token(self, tokens: Tokens, clock: Clock) -> None:
        _, session = await self.begun(tokens, seconds=60, expires_at=clock() + timedelta(seconds=30))
        clock.time += timedelta(seconds=29)
        assert await tokens.session(session) is not None
        clock.time += timedelta(seconds=1)
        assert await tokens.session(session) is None

    async def test_is_over_once_it_was_signed_out_and_others_are_not(self, tokens: Tokens) -> None:
        token, session = await self.begun(tokens)
        grant = await tokens.verify(token)
        assert grant is not None
        other, _ = await tokens.begin_session(grant, seconds=60)
        await tokens.end_session(session)
        await tokens.end_session(session)
        await tokens.end_session("nonsense")
        assert await tokens.session(session) is None
        assert await tokens.session(other) is not None

    async def test_is_over_once_its_token_is_revoked(self, tokens: Tokens) -> None:
        _, session = await self.begun(tokens)
        await tokens.revoke("ann")
        assert await tokens.session(session) is None

    async def test_of_many_grants_those_that_hold_are_told(self, tokens: Tokens, clock: Clock) -> None:
        token, session = await self.begun(tokens)
        ann, sitting = await tokens.verify(token), await tokens.session(session)
        bob = await tokens.verify(
            await tokens.create(name="bob", role="viewer", expires_at=clock() + timedelta(hours=2))
        )
        assert ann is not None
        assert sitting is not None
        assert bob is not None
        grants = {ann.id, sitting.id, bob.id}
        assert await tokens.holding({*grants, "token nobody", "session nobody", "nonsense"}) == grants
        await tokens.end_session(session)
        assert await tokens.holding(grants) == {ann.id, bob.id}
        clock.time += timedelta(hours=2)
        assert await tokens.holding(grants) == {ann.id}
        await tokens.revoke("ann")
        assert await tokens.holding(grants) == set()

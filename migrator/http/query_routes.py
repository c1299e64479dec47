"""The routes that change nothing."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, StringConstraints
from starlette.responses import Response

from migrator.api import field_errors
from migrator.api.commands import Name
from migrator.api.documents import DirtyRatesDocument, MigrationDocument, SampleDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.api.inventory_pages import (
    NOBODY,
    GuestList,
    GuestOrder,
    GuestQuery,
    HostList,
    HostOrder,
    HostQuery,
    guest_list,
    host_list,
)
from migrator.api.queries import EvacuationFilter, MigrationFilter
from migrator.api.requests import Caller
from migrator.api.service_documents import ServiceDocument
from migrator.core.drain.states import EvacuationState
from migrator.core.inventory import HostState
from migrator.core.model import State
from migrator.http.dependencies import KnownCaller, answer, answer_changed, dependencies, queries_of
from migrator.http.problems import ProblemError
from migrator.ports.queries import Queries

router = APIRouter()

Limit = Annotated[int, Query(ge=1, le=500, description="At most so many.")]
Before = Annotated[Name | None, Query(description="Those after this one: `next` of the page before.")]
#: Anything that can be in a guest's name, but for what no journal can look for.
_Text = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00]*$")]
GuestFilter = Annotated[_Text | None, Query(description="A guest's key.")]
Identifier = Annotated[Name, Path()]
Search = Annotated[
    _Text,
    Query(description="Words, each of which is somewhere in what it is known by; case does not matter."),
]
RowLimit = Annotated[
    int | None, Query(ge=0, le=500, description="At most so many; 0: the counts alone. Left out: all.")
]
Offset = Annotated[int, Query(ge=0, le=10_000_000, description="So many of them are left out first.")]
_SORT = "By that field; with `-` before it the largest first. What is not known is last."
_UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "As it was: `If-None-Match` has the `ETag` of this answer."}
}


class MigrationPage(BaseModel):
    """Newest first."""

    items: list[MigrationDocument]
    #: Give it as ``before`` for the next page; ``null``: this was the last.
    next: str | None = None


class SampleList(BaseModel):
    """Samples by time; a few hundred at most."""

    items: list[SampleDocument]


class EvacuationPage(BaseModel):
    """Newest first."""

    items: list[EvacuationDocument]
    next: str | None = None


@router.get("/migrations", response_model=MigrationPage, tags=["migrations"])
async def list_migrations(
    request: Request,
    caller: KnownCaller,
    limit: Limit = 50,
    before: Before = None,
    state: State | None = None,
    guest: GuestFilter = None,
    host: Name | None = None,
    evacuation: Name | None = None,
    active: Annotated[
        bool, Query(description="Only those that have not ended, held ones among them.")
    ] = False,
) -> Response:
    """Migrations, newest first; with `active` all of them in one page."""
    queries = queries_of(request, caller)
    where = MigrationFilter(state=state, guest=guest, host=host, evacuation=evacuation)
    if active:
        items = [one for one in queries.active_migrations() if where.fits(one)]
        return answer(MigrationPage(items=sorted(items, key=lambda one: one.created_at, reverse=True)))
    found = list(await queries.migrations(limit=limit + 1, before=before, where=where))
    return answer(
        MigrationPage(items=found[:limit], next=found[limit - 1].id if len(found) > limit else None)
    )


@router.get("/migrations/{id}", response_model=MigrationDocument, tags=["migrations"])
async def read_migration(request: Request, id: Identifier, caller: KnownCaller) -> Response:  # noqa: A002 - its public name
    """One migration, ended or not."""
    return answer(await migration(request, id, caller))


@router.get("/migrations/{id}/samples", response_model=SampleList, tags=["migrations"])
async def read_samples(request: Request, id: Identifier, caller: KnownCaller) -> Response:  # noqa: A002 - its public name
    """The figures of one migration, ended or not, by time: what its curves are drawn from.

    A few hundred at most, however long it took: several a second of a short one, fewer and evenly spread of a long one,
    and rather those at which a state, a round, the throttle or the downtime limit changed.
    """
    await migration(request, id, caller)
    return answer(SampleList(items=list(await queries_of(request, caller).samples(id))))


@router.get("/evacuations", response_model=EvacuationPage, tags=["evacuations"])
async def list_evacuations(
    request: Request,
    caller: KnownCaller,
    limit: Limit = 50,
    before: Before = None,
    state: EvacuationState | None = None,
    host: Name | None = None,
    active: Annotated[bool, Query(description="Only those that run.")] = False,
) -> Response:
    """Evacuations and restores, newest first; with `active` all of them in one page."""
    queries = queries_of(request, caller)
    where = EvacuationFilter(state=state, host=host)
    if active:
        items = [one for one in queries.active_evacuations() if where.fits(one)]
        return answer(EvacuationPage(items=sorted(items, key=lambda one: one.created_at, reverse=True)))
    found = list(await queries.evacuations(limit=limit + 1, before=before, where=where))
    return answer(
        EvacuationPage(items=found[:limit], next=found[limit - 1].id if len(found) > limit else None)
    )


@router.get("/evacuations/{id}", response_model=EvacuationDocument, tags=["evacuations"])
async def read_evacuation(request: Request, id: Identifier, caller: KnownCaller) -> Response:  # noqa: A002 - its public name
    """One evacuation or restore, ended or not."""
    return answer(await evacuation(request, id, caller))


@router.get("/hosts", response_model=HostList, responses=_UNCHANGED, tags=["hosts"])
async def list_hosts(
    request: Request,
    caller: KnownCaller,
    search: Search = "",
    state: Annotated[list[HostState], Query(description="One of these states.")] = [],  # noqa: B006 - FastAPI copies it
    up: bool | None = None,
    cordoned: bool | None = None,
    sort: Annotated[HostOrder, Query(description=_SORT)] = "host",
    limit: RowLimit = None,
    offset: Offset = 0,
) -> Response:
    """All hosts, by name; or those that are searched for, sorted, and a part of them at a time."""
    query = HostQuery(
        search=search,
        states=frozenset(state),
        up=up,
        cordoned=cordoned,
        sort=sort,
        limit=limit,
        offset=offset,
    )
    return answer_changed(request, host_list(queries_of(request, caller).hosts(), query))


@router.get("/hosts/{host}", response_model=HostDocument, tags=["hosts"])
async def read_host(request: Request, host: Identifier, caller: KnownCaller) -> Response:
    """One host."""
    return answer(_host(queries_of(request, caller), host))


@router.get("/guests", response_model=GuestList, responses=_UNCHANGED, tags=["guests"])
async def list_guests(
    request: Request,
    caller: KnownCaller,
    host: Name | None = None,
    refresh: Annotated[bool, Query(description="Look at the hosts first, or at that one.")] = False,
    search: Search = "",
    state: Annotated[list[_Text], Query(description="One of these run states.")] = [],  # noqa: B006 - FastAPI copies it
    managed_by: Annotated[
        _Text | None, Query(description=f"Who else manages it, or `{NOBODY}`: nobody does.")
    ] = None,
    policy: Annotated[Name | None, Query(description="The policy that it moves by.")] = None,
    movable: bool | None = None,
    moving: Annotated[bool | None, Query(description="It has a migration under way.")] = None,
    duplicate: Annotated[bool | None, Query(description="Its uuid runs twice.")] = None,
    monitored: Annotated[bool | None, Query(description="It has a monitor.")] = None,
    sort: Annotated[GuestOrder, Query(description=_SORT)] = "host",
    limit: RowLimit = None,
    offset: Offset = 0,
) -> Response:
    """All guests, or those of one host, by host and name; or those that are searched for, sorted, a part at a time."""
    queries = queries_of(request, caller)
    if host is not None:
        _host(queries, host)
    if refresh:
        await queries.refresh(host)
    query = GuestQuery(
        search=search,
        states=frozenset(state),
        managed_by=managed_by,
        policy=policy,
        movable=movable,
        moving=moving,
        duplicate=duplicate,
        monitored=monitored,
        sort=sort,
        limit=limit,
        offset=offset,
    )
    return answer_changed(request, guest_list(queries.guests(host), query))


@router.get("/guests/{guest:path}", response_model=GuestDocument, tags=["guests"])
async def read_guest(
    request: Request,
    guest: Annotated[_Text, Path(description="Uuid, name, or HOST/NAME.")],
    caller: KnownCaller,
) -> Response:
    """One guest; a name that several have is refused with the candidates."""
    found = queries_of(request, caller).guest(guest)
    if found is None:
        raise ProblemError(404, "not-found", f"there is no guest {guest!r}")
    return answer(found)


@router.get("/dirty-rates", response_model=DirtyRatesDocument, tags=["guests"])
async def read_dirty_rates(
    request: Request, guest: Annotated[_Text, Query(description="A guest's key.")], caller: KnownCaller
) -> Response:
    """One guest's write rate by hour of the day, as it was measured: when it can be moved most easily."""
    return answer(await queries_of(request, caller).dirty_rates(guest))


@router.get("/service", response_model=ServiceDocument, tags=["service"])
async def read_service(request: Request, _: KnownCaller) -> Response:
    """The controller that answers, and those that it shares the journal with: who acts, who stands by, since when."""
    own = dependencies(request)
    found = own.service()
    complaints = dict.fromkeys([*found.complaints, *own.queries.complaints()])
    emptied = {
        (each.requested_by, each.host)
        for each in own.queries.active_evacuations()
        if each.kind == "evacuate" and (each.state is not EvacuationState.SCHEDULED or each.begins_soon)
    }
    return answer(
        found.model_copy(
            update={
                "complaints": list(complaints),
                "now": datetime.now(UTC),
                "hosts": len(own.queries.hosts()),
                "emptied_by": Counter(user for user, _ in emptied),
            }
        )
    )


def _host(queries: Queries, name: str) -> HostDocument:
    """Return the host of that name.

    :raise ProblemError: 404, with those that there are.
    """
    found = queries.host(name)
    if found is None:
        known = (each.host for each in queries.hosts())
        raise ProblemError(404, "not-found", field_errors.no_such_host(name, known))
    return found


async def migration(request: Request, identifier: str, caller: Caller) -> MigrationDocument:
    """The migration of that id.

    :raise ProblemError: 404.
    """
    found = await queries_of(request, caller).migration(identifier)
    if found is None:
        raise ProblemError(404, "not-found", f"there is no migration {identifier}")
    return found


async def evacuation(request: Request, identifier: str, caller: Caller) -> EvacuationDocument:
    """The evacuation of that id.

    :raise ProblemError: 404.
    """
    found = await queries_of(request, caller).evacuation(identifier)
    if found is None:
        raise ProblemError(404, "not-found", f"there is no evacuation {identifier}")
    return found

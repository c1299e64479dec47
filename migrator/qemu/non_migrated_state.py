"""Reads what is under way or was set in one QEMU and does not travel; nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from migrator.core.preflight.non_migrated_state import OURS, BlockJob, DiskUsers, Export, NonMigratedState
from migrator.core.process.options import Value

#: Asks one QEMU; ``None`` where it has no such command, or refuses.
Ask = Callable[..., Awaitable[Any]]

#: Objects that watch or change somebody's traffic.
_WATCHERS = ("filter-", "colo-")


async def read_disk_users(ask: Ask) -> DiskUsers:
    """Read the jobs at work and the exports that are there now, ours left out."""
    jobs, exports = await asyncio.gather(ask("query-jobs"), ask("query-block-exports"))
    return DiskUsers(
        jobs=tuple(job for job in _jobs(jobs) if job.at_work and not job.id.startswith(OURS)),
        ours=tuple(job for job in _jobs(jobs) if job.id.startswith(OURS)),
        exports=tuple(
            Export(id=each["id"], kind=each["type"], node=each["node-name"])
            for each in exports or []
            if not each["id"].startswith(OURS)
        ),
    )


def _jobs(shown: Iterable[dict[str, Any]] | None) -> Iterable[BlockJob]:
    for job in shown or []:
        yield BlockJob(
            id=job["id"],
            kind=job["type"],
            status=job["status"],
            error=job.get("error", ""),
            done_bytes=job.get("current-progress", 0),
            total_bytes=job.get("total-progress", 0),
        )


async def read_non_migrated_state(ask: Ask, arguments: Sequence[str]) -> NonMigratedState:
    """Read everything that is under way or set in one QEMU and does not move with its guest.

    :param arguments: its command line; empty: unknown.
    """
    busy, jobs, nodes, vnc, spice, replay, chardevs, fdsets, limits, objects = await asyncio.gather(
        read_disk_users(ask),
        ask("query-jobs"),
        ask("query-named-block-nodes", flat=True),
        ask("query-vnc-servers"),
        ask("query-spice"),
        ask("query-replay"),
        ask("query-chardev"),
        ask("query-fdsets"),
        ask("query-vcpu-dirty-limit"),
        ask("qom-list", path="/objects"),
    )
    labels = {each["label"]: each["filename"] for each in chardevs or []}
    mode = (replay or {}).get("mode", "none")
    return NonMigratedState(
        disk_users=busy,
        unread=tuple(job for job in _jobs(jobs) if not job.at_work and not job.id.startswith(OURS)),
        bitmaps=tuple(
            (block_node_label(node), bitmap["name"])
            for node in nodes or []
            for bitmap in node.get("dirty-bitmaps") or []
            # One without a name belongs to a job.
            if not bitmap["persistent"] and bitmap.get("name", "").partition(OURS)[0]
        ),
        passwords=(*_vnc(vnc or [], arguments), *_spice(spice or {}, arguments)),
        replay="" if mode == "none" else mode,
        gdb="gdb" in labels and not {"-gdb", "--gdb", "-s", "--s"} & set(arguments),
        left_behind=(
            *(f"what ring buffer {label} holds" for label, file in labels.items() if file == "ringbuf"),
            *(f"file descriptor set {each['fdset-id']}" for each in fdsets or [] if each["fds"]),
            *(["the limit of what vCPUs may dirty (set-vcpu-dirty-limit)"] if limits else []),
            *(f"network filter {name}" for name in _watchers(objects or [], arguments)),
            *(
                f"that block node {block_node_label(node)} is inactive"
                for node in nodes or []
                if node.get("active") is False
            ),
        ),
    )


def block_node_label(node: dict[str, Any]) -> str:
    """Return what a person calls a block node: its name, or its image where QEMU made the name up."""
    name: str = node["node-name"]
    return name if not name.startswith("#") else node.get("file") or name


def _watchers(objects: Iterable[dict[str, str]], arguments: Sequence[str]) -> Iterable[str]:
    """Yield the network filters that somebody added while it ran; the others are started with the destination."""
    given = {Value(text, first="qom-type").get("id") for text in _options(arguments, "object")}
    for each in objects:
        if (
            each["type"].startswith(tuple(f"child<{kind}" for kind in _WATCHERS))
            and each["name"] not in given
        ):
            yield each["name"]


def _options(arguments: Sequence[str], name: str) -> list[str]:
    return [value for flag, value in pairwise(arguments) if flag in (f"-{name}", f"--{name}")]


def _vnc(servers: Iterable[dict[str, Any]], arguments: Sequence[str]) -> Iterable[str]:
    """Yield the VNC displays whose password was set over QMP."""
    given = [Value(text, first="vnc") for text in _options(arguments, "vnc")]
    secret = {value.get("id") or "default" for value in given if value.get("password-secret")}
    for server in servers:
        asks = server["auth"] == "vnc" or any(each["auth"] == "vnc" for each in server["server"])
        if asks and server["id"] not in secret:
            yield f"VNC display {server['id']}"


def _spice(shown: dict[str, Any], arguments: Sequence[str]) -> Iterable[str]:
    given = [Value(text, first="spice") for text in _options(arguments, "spice")]
    known = any(value.get("password") or value.get("password-secret") for value in given)
    if shown.get("enabled") and shown.get("auth") == "spice" and not known:
        yield "the SPICE display"

"""The policies that guests go home by, which are those that they left by: what each allows is said before it begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from migrator.cli.client import Document, Rejected, ServiceClient


def by_which_policies(client: ServiceClient, host: str) -> Iterator[str]:
    """Yield the policies that guests left a host by because somebody asked for that, and what each allows.

    One may have them stand still, or shut down, where a guest's own would not.
    """
    try:
        names = asked_for(client.get("evacuations", host=host, limit=100)["items"])
        allows = {one["name"]: one["allows"] for one in client.get("policies")["items"]} if names else {}
    except Rejected:  # what is wrong with it the restore itself is told
        return
    for name in names:
        yield f"guests left {host} by the policy {name}, and go home by it; another is taken with --policy:"
        yield from (f"    {sentence}" for sentence in allows.get(name, ()))


def asked_for(evacuations: Iterable[Document]) -> list[str]:
    """Return the policies that were asked for, each once, of those evacuations whose guests a restore brings home.

    :param evacuations: and restores of one host, the newest first.
    """
    names: dict[str, None] = {}
    for one in evacuations:
        if one["state"] == "scheduled":
            continue
        if one["ended_at"] is None or one["kind"] == "restore":
            if one["kind"] == "restore" and not names and one["guests_left"]:
                names[one["policy"]] = None
            break
        if any(guest["standing"] == "moved" for guest in one["guests"]):
            names[one["policy"]] = None
    return [name for name in names if name]

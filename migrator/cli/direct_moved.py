"""The refusal of ``migrator direct`` where it is run again after it has moved the guest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from migrator import wall_clock
from migrator.cli.over_ssh import OverSsh
from migrator.errors import MigratorError, Refused
from migrator.qemu import address
from migrator.store.records import Completed, completed


async def refuse_moved(source: str, destination: str, over_ssh: OverSsh) -> None:
    """Refuse where a finished record says that the guest was moved from one to the other, and its source is gone since.

    :param source: address of a monitor, as a person types it; so is the destination's.
    :raise Refused: with when that was, and where the guest is.
    """
    done = completed(source, destination)
    if done is None:
        return
    left, arrived = done.facts["source"]["identity"], done.facts["destination"]["identity"]
    if not await over_ssh.is_gone(address.parse(source), left):
        return  # the process that it was moved out of may be the one that does not answer
    if await over_ssh.is_gone(address.parse(destination), arrived):
        now = "the process that it ran in there has ended since"
    else:
        now = f"look for it there (process {arrived['pid']})" if "pid" in arrived else "look for it there"
    raise _refusal(done, source, destination, now)


async def refuse_moved_there(source: str, destination: str, is_there: Callable[[], Awaitable[bool]]) -> None:
    """Refuse likewise for a guest that its source does not have any more.

    :param is_there: asks the destination whether it has the guest.
    :raise Refused: with when it was moved, and where it is.
    """
    done = completed(source, destination)
    if done is None:
        return
    try:
        now = "it is there" if await is_there() else "it is not there any more"
    except MigratorError as error:
        now = f"whether it is there cannot be told: {error}"
    raise _refusal(done, source, destination, now)


def _refusal(done: Completed, source: str, destination: str, now: str) -> Refused:
    when = wall_clock.show(datetime.fromtimestamp(done.ended_at, UTC))
    guest = f"guest {done.facts.get('guest') or done.facts.get('uuid') or ''}".rstrip()
    return Refused(
        f"{guest} was moved from {source} to {destination} already, on {when}; {now}. Nothing was changed now; the "
        f"record is {done.path}"
    )

"""The refusal of ``migrator direct`` where it is run again after it has moved the guest."""

from __future__ import annotations

from datetime import UTC, datetime

from migrator import wall_clock
from migrator.cli.over_ssh import OverSsh
from migrator.errors import Refused
from migrator.qemu import address
from migrator.store.records import completed


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
    when = wall_clock.show(datetime.fromtimestamp(done.ended_at, UTC))
    guest = f"guest {done.facts.get('guest') or done.facts.get('uuid') or ''}".rstrip()
    if await over_ssh.is_gone(address.parse(destination), arrived):
        now = "the process that it ran in there has ended since"
    else:
        now = f"look for it there (process {arrived['pid']})" if "pid" in arrived else "look for it there"
    raise Refused(
        f"{guest} was moved from {source} to {destination} already, on {when}; {now}. Nothing was changed now; the "
        f"record is {done.path}"
    )

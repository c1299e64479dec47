"""Makes migrations, has each journalled before anything is begun, and takes note of what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from migrator.api.trace_context import TraceContext
from migrator.core.drain.evacuation import Ended, Evacuation
from migrator.core.drain.preparations import Preparations
from migrator.core.guest_experience import LastMove
from migrator.core.inventory import Guest
from migrator.core.model import State
from migrator.core.policy import Policy
from migrator.engine import clock
from migrator.engine.announcer import Announcer
from migrator.engine.guest_experiences import GuestExperiences
from migrator.engine.image_removals import ImageRemovals
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration import take_over
from migrator.engine.migration.file_move import FileMove
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.leftovers import Leftovers
from migrator.engine.migration.saved_entry import SAVED_ENTRY, saved_entry
from migrator.engine.migration.services import SessionServices
from migrator.engine.migration.session_phase import Phase
from migrator.engine.pair_overheads import PairOverheads
from migrator.engine.registry import Registry, new_id
from migrator.engine.rules import Rules
from migrator.engine.spreading import Spreading


class Sessions:
    """Every migration of this service comes from here.

    :param rules: as they are now.
    :param changed: called when something became of one of them.
    :ivar spreading: where other controllers may drive some of them.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        services: SessionServices,
        journal_writer: JournalWriter,
        announcer: Announcer,
        inventory: Inventory,
        experiences: GuestExperiences,
        pair_overheads: PairOverheads,
        leftovers: Leftovers,
        image_removals: ImageRemovals,
        preparations: Preparations,
        rules: Callable[[], Rules],
        changed: Callable[[], None],
    ) -> None:
        self._registry, self._services, self._journal_writer = registry, services, journal_writer
        self._announcer, self._inventory, self._leftovers = announcer, inventory, leftovers
        self._image_removals = image_removals
        self._experiences, self._pair_overheads = experiences, pair_overheads
        self._preparations, self._rules, self._changed = preparations, rules, changed
        self.spreading: Spreading | None = None
        registry.on_done = self.note

    def make(
        self,
        guest: Guest,
        target: str,
        policy: Policy,
        *,
        accept: Sequence[str] = (),
        run: str | None = None,
        by: str = "",
        key: str = "",
        trace: TraceContext | None = None,
        announce: bool = True,
        file: FileMove | None = None,
        moved_with: str = "",
    ) -> JournalledSession:
        """Return a new one; nothing is begun.

        :param announce: others are told of it.
        :param moved_with: the group whose guests are switched together.
        """
        return JournalledSession(
            identifier=new_id(),
            guest=guest,
            target=target,
            policy=policy,
            services=self._services,
            accepted=tuple(dict.fromkeys((*accept, *guest.accept))),
            evacuation=run,
            requested_by=by,
            key=key,
            trace=trace,
            file=file,
            moved_with=moved_with,
            **(self.callbacks() if announce else {}),
        )

    def callbacks(self) -> dict[str, Any]:
        """Return what a session calls when something becomes of it."""
        return {
            "on_state": self._entered,
            "on_progress": self._progressed,
            "on_decision": self._announcer.decision,
            "on_ready": self._ready,
        }

    async def journal(self, session: JournalledSession, *, reason: str = "") -> None:
        """Journal a migration before anything is begun; then the registry has it, and its evacuation knows of it.

        The evacuation's own document follows; a controller that dies before finds the migration, which says whose it
        is.

        :param reason: why it goes to its target.
        :raise JournalError: it is not written, and nothing is begun.
        """

        def written() -> None:
            if session.evacuation is not None:
                self._registry.change(
                    session.evacuation,
                    lambda run: run.begun(
                        session.guest.key, session.id, session.target, reason, saving=session.saves
                    ),
                )
                self._announcer.evacuation(session.evacuation)
            self._registry.add(session)
            self._announcer.migration(session)
            self._changed()

        self._registry.expect(session)
        try:
            entry = [(SAVED_ENTRY, saved_entry(session))] if session.saves else []
            await self._journal_writer.commit(("migration", session.journalled), *entry, then=written)
        finally:
            self._registry.expect_no_more(session)

    def drive(self, session: JournalledSession) -> None:
        """Have it driven, here in its task or by another controller; one that the service stops before stays."""
        if not self._registry.may_begin or session.ended or self._registry.busy(session):
            return
        alone = self.spreading is None or session.file is not None
        driver = None if alone or self.spreading is None else self.spreading.choose(session)
        if driver is None or self.spreading is None:
            self._registry.start(session, session.drive())
        else:
            given = self.spreading.hand_over(session, driver, otherwise=session.drive)
            self._registry.start(session, given)

    def resume(self, session: JournalledSession) -> None:
        """Go on with one that was parked while another controller might have had the right to drive it."""
        session.resume()
        if session.phase is Phase.LEFT:
            self._registry.start(session, take_over.take_up(session))

    def present(self, session: JournalledSession) -> JournalledSession:
        """Return the session that has taken the place of one, which may have been given away or taken back since."""
        return self._registry.migrations.get(session.id, session)

    def cancel(self, session: JournalledSession) -> bool:
        """Have the guest stay where it is; one that nobody drives yet ends at once. False: it is too late."""
        session = self.present(session)
        if not session.cancel():
            return False
        if session.state is State.QUEUED and not self._registry.busy(session):
            self.call_off(session)
        else:
            self._journal_writer.schedule_latest("migration", session.id, session.journalled)
        self._changed()
        return True

    def call_off(self, session: JournalledSession) -> None:
        """End one that is cancelled and that nobody drives; hooks that know of it are told, and what may be frozen
        in its guest is thawed first."""
        if session.hooks_owed or session.thaw_owed:
            self._registry.start(session, session.drive())  # which finds that it is unwanted
            return
        session.call_off()
        self.note(session)

    def cancel_all(self, run: Evacuation) -> None:
        """Cancel the migrations of an evacuation as far as that is safe."""
        for entry in run.under_way:
            session = self._registry.migrations.get(entry.migration or "")
            if session is not None:
                self.cancel(session)

    # --- what becomes of them ----------------------------------------------------------------------------------------

    def _progressed(self, session: JournalledSession) -> None:
        self._announcer.progress(session)
        if session.moved_with and session.switchable_since is not None:
            self._changed()  # the others of its group may be due

    def _ready(self, session: JournalledSession) -> None:
        self._preparations.note(session.target, session.preparation_seconds or 0.0)
        self._changed()

    def _entered(self, session: JournalledSession) -> None:
        self._announcer.migration(session)
        if session.ended and session.image_removal is not None:
            self._image_removals.add(session.image_removal)  # in the same transaction
        if session.ended and session.saves:
            self._journal_writer.schedule(SAVED_ENTRY, saved_entry(session))  # and so is this
        if session.state is not State.HELD and not session.ended:
            self._change_run(session, lambda run: run.gone_on(session.guest.key))
        self._changed()

    def note(self, session: JournalledSession) -> None:
        """Note in the inventory, the evacuation and the history that a migration has ended, is held, or waits again."""
        if self._registry.migrations.get(session.id) is not session:
            return  # another controller drives it by now
        if session.ended and session.state is State.COMPLETED and session.saves:
            self._inventory.gone(session.guest, session.guest.host)
        elif session.ended and session.state is State.COMPLETED:
            self._inventory.moved(session.guest, session.target, session.arrived_socket, session.arrived_pid)
            self._learn(session)
            self._say_where_group_is(session)
        elif session.ended and session.state is State.GUEST_ENDED:
            self._inventory.gone(session.guest, session.guest.host, session.target)
        if session.ended or session.state is State.HELD:
            how, limits = _how_it_ended(session), self._rules().site_limits
            self._change_run(
                session,
                lambda run: run.one_ended(session.guest.key, how, now=clock.now(), limits=limits),
            )
        if session.state is State.HELD:
            for host in (session.guest.host, session.target):
                self._inventory.schedule.notice(
                    host
                )  # one may not answer, which is to be known of the host too
        if session.ended and session.left_over:
            self._leftovers.add(session.target, session.id, images=session.images_left_over)
        if session.ended and session.source_left_over:
            self._leftovers.add_source(session.guest, session.id)
        if self._registry.may_begin and session.parked and not session.ended:
            self.resume(session)
        self._changed()

    def _say_where_group_is(self, session: JournalledSession) -> None:
        """Say which guests of its group are elsewhere, where nobody moves them together any more: it was held, and what
        moved them has ended.
        """
        run = self._registry.evacuations.get(session.evacuation or "")
        if not session.moved_with or (run is not None and not run.ended):
            return
        group = session.moved_with
        others = [each for each in self._inventory.guests() if each.group == group]
        apart = [f"{each.label} is on {each.host}" for each in others if each.host != session.target]
        if apart:
            session.tell_group(
                f"its group {group} is apart, as what moved it has ended: {', '.join(apart)}; "
                f"migrator migrate --group {group} --to {session.target} brings them together"
            )

    def _learn(self, session: JournalledSession) -> None:
        """Keep what its migration told of the guest."""
        result = session.result
        if not result.duration_seconds or session.file is not None:
            return  # another controller saw it
        if session.driven_elsewhere and result.overhead_seconds is not None:
            self._pair_overheads.learn(result.pair, result.overhead_seconds)
        move = LastMove(
            at=clock.wall(),
            source=session.guest.host,
            destination=session.target,
            seconds=round(result.duration_seconds, 3),
            downtime_seconds=result.downtime_seconds,
        )
        self._experiences.note_move(
            session.guest.key,
            move,
            working_set_bytes=result.working_set_bytes,
            first_pass_ratio=result.first_pass_ratio,
            watched_seconds=result.watched_seconds,
            changes=result.habit_changes,
        )
        if result.write_rate_bytes_per_second is not None:
            self._experiences.note_rate(session.guest.key, result.write_rate_bytes_per_second)

    def _change_run(self, session: JournalledSession, change: Callable[[Evacuation], Evacuation]) -> None:
        """Change the evacuation that it is the present migration of."""
        run = self._registry.evacuations.get(session.evacuation or "")
        if run is None or run.ended:
            return
        before = run.entries.get(session.guest.key)
        if before is None or before.migration != session.id:
            return
        self._registry.change(run.id, change)
        after = self._registry.evacuations[run.id].entries[session.guest.key]
        if (after.standing, after.reason) != (before.standing, before.reason):
            self._announcer.evacuation(run.id)  # not where it is held, was tried again, and is held as before


def _how_it_ended(session: JournalledSession) -> Ended:
    return Ended(
        state=session.state,
        error=session.result.error or "",
        refused=session.refused and not session.may_pass,
        everywhere=session.refused_everywhere,
        awaited=session.unreachable,
        exceeded=session.result.ceiling_exceeded,
        saved=session.file.path if session.saves and session.file is not None else "",
    )

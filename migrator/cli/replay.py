"""``migrator replay``: what another policy would have decided on a recorded run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from migrator.cli import Exit
from migrator.cli.recording import read
from migrator.core.migration import convergence, convergence_state
from migrator.core.migration.convergence_state import Abilities
from migrator.core.model import Sample, State
from migrator.core.policy import PostcopyMode, builtin
from migrator.errors import UsageError
from migrator.text import clean
from migrator.units import show_seconds


def main(file: Path, policy: str, *, json_output: bool) -> None:
    """Replay the recording and exit with the code."""
    lines = read(file)
    decided = _replay(lines, policy, file)
    made = [line["decision"] for line in lines if "decision" in line]
    if json_output:
        print(
            json.dumps(
                {"policy": policy, "recorded_policy": lines[0]["policy"]["name"], "decisions": decided}
            )
        )
        sys.exit(Exit.DONE)
    print(clean(f"As it was, under policy {lines[0]['policy']['name']}:"))
    for decision in made:
        print(clean(f"{decision['at_seconds']:8.3f} s  {decision['action']}: {decision['reason']}"))
    print(f"Under policy {policy}:")
    for decision in decided:
        print(clean(f"{decision['at_seconds']:8.3f} s  {decision['action']}: {decision['reason']}"))
    if not decided:
        print("    it would have let it run as it did")
    sys.exit(Exit.DONE)


def _replay(lines: list[dict[str, Any]], name: str, file: Path) -> list[dict[str, Any]]:
    policy = builtin(name)
    try:
        abilities = Abilities(**lines[0]["abilities"])
        samples = [Sample(**line["sample"]) for line in lines if line.get("state") == State.PRECOPY]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{file} is not a recorded run: {error} is missing or wrong in it") from error
    # The recorded policy may have left untried what the ends can do.
    abilities = Abilities(
        postcopy=abilities.postcopy or policy.postcopy is not PostcopyMode.NEVER,
        throttle=abilities.throttle or policy.max_throttle_ratio > 0,
    )
    state = convergence_state.begin(policy)
    decided: list[dict[str, Any]] = []
    for sample in samples:
        state, seen, actions = convergence.decide(state, sample, policy, abilities)
        decided += [
            {
                "at_seconds": sample.at_seconds,
                "action": action.act,
                "value": action.value,
                "reason": action.reason,
                "verdict": seen.verdict,
            }
            for action in actions
        ]
        if state.settled:
            rest = samples[-1].at_seconds - sample.at_seconds
            if rest > 0:
                reason = f"the other {show_seconds(rest)} of the run would not have been"
                decided.append({"at_seconds": sample.at_seconds, "action": "end", "reason": reason})
            break
    return decided

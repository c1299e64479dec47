"""Placement: its promises on what hypothesis thinks up, checked by a solver that knows nothing of how it is done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.core.inventory import Guest, Host, HostFacts, HostState
from migrator.core.placement import (
    Constraint,
    Fleet,
    NoHost,
    Options,
    Placement,
    PlacementRequest,
    Strategy,
    check,
    place,
)

GIB = 2**30


def host(
    name: str, memory: float = 16, *, cpus: int = 0, kvm: bool = True, free: float = 0, **fields: object
) -> Host:
    facts = HostFacts(
        memory_total_bytes=int(memory * GIB), memory_free_bytes=int(free * GIB), cpus=cpus, kvm=kvm
    )
    return replace(Host(name=name, facts=facts, cpu_overcommit_ratio=1.0), **fields)  # type: ignore[arg-type]


def guest(key: str, on: str, memory: float = 4, **fields: object) -> Guest:
    return replace(Guest(key=key, host=on, memory_bytes=int(memory * GIB)), **fields)  # type: ignore[arg-type]


def targets(answers: Mapping[str, Placement | NoHost]) -> dict[str, str | None]:
    return {key: answer.host if isinstance(answer, Placement) else None for key, answer in answers.items()}


def emptied(
    hosts: Sequence[Host], guests: Sequence[Guest], *leaving: str, options: Options | None = None
) -> dict[str, Placement | NoHost]:
    """The plan that empties these hosts at once."""
    fleet = Fleet(hosts=hosts, guests=guests, leaving=leaving)
    return place(fleet, [PlacementRequest(guest=one) for one in guests if one.host in leaving], options)


# ---------------------------------------------------------------------------------------------------------
# A second opinion


def may_be(
    one: PlacementRequest,
    there: Host,
    hosts: Mapping[str, Host],
    present: Iterable[Guest],
    leaving: Iterable[str],
) -> bool:
    """Whether a guest may be on a host beside those that are there."""
    wanted, present = one.guest, list(present)
    kvm = one.kvm if one.kvm is not None else wanted.host in hosts and hosts[wanted.host].facts.kvm
    available = there.facts.memory_free_bytes
    return (
        there.up
        and there.state is HostState.ACTIVE
        and there.name not in {wanted.host, *leaving, *one.excluded}
        and one.only in ("", there.name)
        and (there.facts.kvm or not kvm)
        and all(there.labels.get(key) == value for key, value in wanted.requires.items())
        and not (wanted.anti_affinity and wanted.anti_affinity in {other.anti_affinity for other in present})
        and sum(other.memory_bytes for other in present) + wanted.memory_bytes <= there.usable_bytes
        and (
            not there.facts.cpus
            or sum(other.vcpus for other in present) + wanted.vcpus
            <= there.facts.cpus * there.cpu_overcommit_ratio
        )
        and (
            not available
            or sum(other.memory_bytes for other in present if other.host != there.name) + wanted.memory_bytes
            <= available
        )
    )


class PlacementCase:
    """A question to placement, and its exact answer."""

    def __init__(
        self,
        hosts: Sequence[Host],
        guests: Sequence[Guest],
        requests: Sequence[PlacementRequest],
        reserved: Mapping[str, str],
        leaving: Sequence[str],
    ) -> None:
        self.hosts, self.guests, self.requests = hosts, guests, requests
        self.reserved, self.leaving = reserved, leaving
        self.by_name = {one.name: one for one in hosts}

    def __repr__(self) -> str:
        return "\n".join(map(repr, (*self.hosts, *self.guests, *self.requests, self.reserved, self.leaving)))

    def fleet(self) -> Fleet:
        return Fleet(hosts=self.hosts, guests=self.guests, reserved=self.reserved, leaving=self.leaving)

    def present(self) -> dict[str, list[Guest]]:
        """Who is on each host before the plan, or on his way there."""
        return {
            name: [one for one in self.guests if name in (one.host, self.reserved.get(one.key))]
            for name in self.by_name
        }

    def allows(self, one: PlacementRequest, name: str, present: Iterable[Guest]) -> bool:
        return may_be(one, self.by_name[name], self.by_name, present, self.leaving)

    def most(self) -> int:
        """How many of the requests can have a place at once, by going through all ways."""
        present, best = self.present(), 0

        def go(at: int, placed: int) -> None:
            nonlocal best
            best = max(best, placed)
            if placed + len(self.requests) - at <= best:
                return
            one = self.requests[at]
            for name, there in present.items():
                if self.allows(one, name, there):
                    there.append(one.guest)
                    go(at + 1, placed + 1)
                    there.pop()
            go(at + 1, placed)

        go(0, 0)
        return best


labels = st.dictionaries(st.sampled_from(["ssd", "zone"]), st.sampled_from(["a", "b"]), max_size=1)


@st.composite
def placement_cases(draw: st.DrawFn) -> PlacementCase:
    hosts = [
        host(
            f"h{n}",
            draw(st.integers(2, 12)),
            cpus=draw(st.sampled_from([0, 0, 2, 4])),
            kvm=draw(st.sampled_from([True, True, False])),
            free=draw(st.sampled_from([0, 0, 5])),
            memory_reserve_bytes=draw(st.sampled_from([0, GIB])),
            labels=draw(labels),
            up=draw(st.sampled_from([True, True, True, False])),
            state=draw(st.sampled_from([HostState.ACTIVE, HostState.ACTIVE, HostState.ACTIVE, *HostState])),
        )
        for n in range(draw(st.integers(1, 5)))
    ]
    names = [one.name for one in hosts]
    guests = [
        guest(
            f"g{n}",
            draw(st.sampled_from(["gone", *names])),
            draw(st.integers(1, 6)),
            vcpus=draw(st.integers(1, 2)),
            anti_affinity=draw(st.sampled_from(["", "", "", "db"])),
            group=draw(st.sampled_from(["", "", "web", "mail"])),
            requires=draw(st.one_of(st.just({}), labels)),
            priority=draw(st.integers(0, 1)),
        )
        for n in range(draw(st.integers(1, 8)))
    ]
    asked = draw(st.lists(st.sampled_from(guests), max_size=6, unique_by=lambda one: one.key))
    keys = [one.key for one in asked]
    reserved = {
        one.key: draw(st.sampled_from(names)) for one in guests if one.key not in keys and draw(st.booleans())
    }
    requests = [
        PlacementRequest(
            guest=one,
            kvm=draw(st.sampled_from([None, True, False])),
            excluded=draw(st.sampled_from([{}, {}, {names[0]: "it failed there"}])),
            prefer=draw(st.sampled_from(["", "", names[-1]])),
            only=draw(st.sampled_from(["", "", "", names[0], "nowhere"])),
        )
        for one in asked
    ]
    return PlacementCase(
        hosts, guests, requests, reserved, draw(st.lists(st.sampled_from(names), max_size=2))
    )


@settings(max_examples=200)
@given(case=placement_cases(), strategy=st.sampled_from(Strategy))
def test_every_promise_holds_and_nobody_stays_out_that_could_be_placed(
    case: PlacementCase, strategy: Strategy
) -> None:
    fleet = case.fleet()
    answers = place(fleet, case.requests, Options(strategy=strategy))
    assert list(answers) == [one.guest.key for one in case.requests]
    present = case.present()
    placed = 0
    for one in case.requests:
        answer = answers[one.guest.key]
        assert answer.guest == one.guest.key
        assert answer.reason
        if isinstance(answer, Placement):
            assert case.allows(one, answer.host, present[answer.host])
            assert all(entry.fits for entry in check(fleet, one, answer.host))
            present[answer.host].append(one.guest)
            placed += 1
    for one in case.requests:
        answer = answers[one.guest.key]
        if isinstance(answer, NoHost):
            assert not any(case.allows(one, name, present[name]) for name in case.by_name)
            if not one.only:
                assert sum(answer.hosts.values()) == len(set(case.by_name) - {one.guest.host})
                assert all(count > 0 for count in answer.hosts.values())
    assert placed == case.most()
    assert place(case.fleet(), case.requests, Options(strategy=strategy)) == answers


@settings(max_examples=150)
@given(case=placement_cases())
def test_check_of_one_host_agrees_with_the_second_opinion(case: PlacementCase) -> None:
    fleet, present = case.fleet(), case.present()
    for one in case.requests:
        for name in case.by_name:
            found = check(fleet, one, name)
            assert all(entry.text for entry in found)
            assert all(entry.fits for entry in found) == case.allows(one, name, present[name])


@settings(max_examples=100)
@given(case=placement_cases())
def test_a_plan_that_is_asked_for_again_stays_as_it_was_told(case: PlacementCase) -> None:
    answers = place(case.fleet(), case.requests)
    again = [replace(one, prefer=targets(answers)[one.guest.key] or "") for one in case.requests]
    if all(isinstance(answer, Placement) for answer in answers.values()):
        assert targets(place(case.fleet(), again)) == targets(answers)


@settings(max_examples=100)
@given(case=placement_cases())
def test_whoever_stays_out_has_no_lower_priority_in_a_place_of_this_plan_that_would_do(
    case: PlacementCase,
) -> None:
    answers = targets(place(case.fleet(), case.requests))
    for out in case.requests:
        if answers[out.guest.key] is not None:
            continue
        for other in case.requests:
            name = answers[other.guest.key]
            if name is None or other.guest.priority >= out.guest.priority:
                continue
            there = case.present()[name] + [
                one.guest for one in case.requests if answers[one.guest.key] == name and one is not other
            ]
            assert not case.allows(out, name, there)


# ---------------------------------------------------------------------------------------------------------
# One behaviour each


class TestTwoHostsEmptiedAtOnce:
    def test_send_no_guests_to_each_other(self) -> None:
        hosts = [host("a", 64), host("b", 64), host("c", 16)]
        guests = [guest(f"{on}{n}", on, 2) for on in "ab" for n in range(4)]
        assert set(targets(emptied(hosts, guests, "a", "b")).values()) == {"c"}

    def test_leave_the_only_host_that_will_do_to_whom_it_will_do(self) -> None:
        hosts = [host("a"), host("b"), host("ssd", 6, labels={"disk": "ssd"}), host("plain", 4)]
        guests = [guest("any", "a", 4), guest("picky", "b", 4, requires={"disk": "ssd"})]
        assert targets(emptied(hosts, guests, "a", "b")) == {"any": "plain", "picky": "ssd"}

    def test_are_rearranged_where_best_fit_leaves_one_out(self) -> None:
        # Largest first fills 10 with 6 + 4 or 6 + 3 and leaves one out; only 6 + 4 and 5 + 3 + 2 is full.
        hosts = [host("a", 64), host("b", 64), host("c", 10), host("d", 10)]
        guests = [guest(f"g{size}", "ab"[size % 2], size) for size in (6, 5, 4, 3, 2)]
        for strategy in Strategy:
            answers = emptied(hosts, guests, "a", "b", options=Options(strategy=strategy))
            assert None not in targets(answers).values()


class TestRoom:
    def test_is_without_the_reserve(self) -> None:
        hosts = [host("a"), host("b", 8, memory_reserve_bytes=GIB)]
        assert targets(emptied(hosts, [guest("g", "a", 8)], "a")) == {"g": None}
        assert targets(emptied(hosts, [guest("g", "a", 7)], "a")) == {"g": "b"}

    def test_that_is_reserved_is_not_given_twice(self) -> None:
        hosts, guests = [host("a"), host("b", 8)], [guest("x", "a", 5), guest("y", "a", 5)]
        fleet = Fleet(hosts=hosts, guests=guests, reserved={"x": "b"})
        assert targets(place(fleet, [PlacementRequest(guest=guests[1])])) == {"y": None}

    def test_is_not_taken_twice_by_one_that_has_arrived(self) -> None:
        hosts, guests = [host("a"), host("b", 8)], [guest("x", "b", 4), guest("y", "a", 4)]
        fleet = Fleet(hosts=hosts, guests=guests, reserved={"x": "b"})
        assert targets(place(fleet, [PlacementRequest(guest=guests[1])])) == {"y": "b"}

    def test_is_no_more_than_the_kernel_has(self) -> None:
        hosts = [host("a"), host("b", 64, free=3)]
        assert targets(emptied(hosts, [guest("g", "a", 4)], "a")) == {"g": None}

    def test_of_a_host_whose_memory_is_unknown_is_none_and_said(self) -> None:
        fleet = Fleet(hosts=[host("a"), Host(name="b")], guests=[])
        found = check(fleet, PlacementRequest(guest=guest("g", "a"), kvm=False), "b")
        assert [entry.text for entry in found if not entry.fits] == [
            "its memory is unknown: set memory of that host"
        ]

    def test_of_cpus_has_the_overcommit_of_the_host(self) -> None:
        hosts = [host("a"), host("b", cpus=2, cpu_overcommit_ratio=1.5)]
        assert targets(emptied(hosts, [guest("g", "a", 1, vcpus=3)], "a")) == {"g": "b"}
        assert targets(emptied(hosts, [guest("g", "a", 1, vcpus=4)], "a")) == {"g": None}


class TestGroups:
    def test_are_kept_together(self) -> None:
        hosts = [host("a", 64), *(host(f"h{n}", 16) for n in range(4))]
        guests = [guest(f"g{n}", "a", 4, group="web") for n in range(3)]
        answers = emptied(hosts, guests, "a")
        assert len(set(targets(answers).values())) == 1
        assert "the others of its group 'web' are there too" in answers["g0"].reason

    def test_go_where_their_others_are_already(self) -> None:
        hosts = [host("a", 64), host("b", 64), host("c", 16)]
        guests = [guest("there", "c", 4, group="web"), guest("g", "a", 4, group="web")]
        assert targets(emptied(hosts, guests, "a")) == {"g": "c"}

    def test_are_broken_up_rather_than_left_behind(self) -> None:
        hosts = [host("a", 64), host("b", 8), host("c", 8)]
        guests = [guest(f"g{n}", "a", 4, group="web") for n in range(4)]
        assert sorted(map(str, targets(emptied(hosts, guests, "a")).values())) == ["b", "b", "c", "c"]

    def test_whose_members_may_not_be_together_are_not(self) -> None:
        hosts = [host("a", 64), host("b", 64), host("c", 64)]
        guests = [guest(f"g{n}", "a", 4, group="db", anti_affinity="db") for n in range(2)]
        assert set(targets(emptied(hosts, guests, "a")).values()) == {"b", "c"}


class TestChoice:
    def test_spread_takes_the_least_used_host(self) -> None:
        hosts = [host("a"), host("small", 16), host("large", 64), host("full", 64)]
        guests = [guest("g", "a"), guest("x", "full", 60)]
        answer = emptied(hosts, guests, "a")["g"]
        assert answer.reason.startswith("small is the least used one that can take it; 25% of its memory")

    def test_pack_takes_the_fullest_that_will_do(self) -> None:
        hosts = [host("a"), host("small", 16), host("tight", 64), host("full", 64)]
        guests = [guest("g", "a"), guest("x", "full", 61), guest("y", "tight", 59)]
        answer = emptied(hosts, guests, "a", options=Options(strategy=Strategy.PACK))["g"]
        assert answer.reason == (
            "tight is the one with the least room that can take it; 1.0 GiB of 64.0 GiB stay free there"
        )

    def test_is_the_host_that_was_asked_for_or_none(self) -> None:
        hosts, one = [host("a"), host("b"), host("c", 1)], guest("g", "a")
        fleet = Fleet(hosts=hosts, guests=[one])
        assert targets(place(fleet, [PlacementRequest(guest=one, only="b")])) == {"g": "b"}
        answer = place(fleet, [PlacementRequest(guest=one, only="c")])["g"]
        assert answer.reason == "only c was asked for: 1 has too little memory (1.0 GiB of 4.0 GiB)"
        assert place(fleet, [PlacementRequest(guest=one, only="x")])["g"].reason == "there is no host 'x'"
        assert place(fleet, [PlacementRequest(guest=one, only="a")])["g"].reason == "it is on a already"


class TestWhyNot:
    def test_is_counted_over_all_hosts(self) -> None:
        one = guest("g", "home", 4, requires={"ssd": "yes"}, anti_affinity="db", vcpus=8)
        ssd = {"ssd": "yes"}
        hosts = [
            host("home", 64),
            *(host(f"small{n}", 1 + n, labels=ssd) for n in range(3)),
            *(host(f"drains{n}", state=HostState.DRAINING) for n in range(2)),
            *(host(f"plain{n}") for n in range(2)),
            host("down", up=False),
            host("kept", state=HostState.MAINTENANCE),
            host("failed", labels=ssd),
            host("tcg", kvm=False, labels=ssd),
            host("taken", labels=ssd),
            host("busy", labels=ssd, cpus=4),
            host("leaves", labels=ssd),
        ]
        guests = [one, guest("other", "taken", 1, anti_affinity="db"), guest("x", "leaves")]
        fleet = Fleet(hosts=hosts, guests=guests, leaving=["leaves"])
        answer = place(fleet, [PlacementRequest(guest=one, excluded={"failed": "no bridge br0"})])["g"]
        assert isinstance(answer, NoHost)
        assert answer.hosts == {
            Constraint.MEMORY: 3,
            Constraint.DRAINING: 2,
            Constraint.LABEL: 2,
            **dict.fromkeys(
                [
                    *(Constraint.DOWN, Constraint.MAINTENANCE, Constraint.EXCLUDED, Constraint.KVM),
                    *(Constraint.ANTI_AFFINITY, Constraint.CPU, Constraint.LEAVING),
                ],
                1,
            ),
        }
        assert sum(answer.hosts.values()) == len(hosts) - 1
        assert answer.reason.startswith(
            "14 other hosts: 3 have too little memory (best has 3.0 GiB of 4.0 GiB), "
        )
        for part in (
            *("2 drain", "2 lack label ssd=yes", "1 does not answer", "1 is in maintenance", "1 has no KVM"),
            *("1 is ruled out (failed: no bridge br0)", "1 has a guest with anti-affinity 'db'"),
            *("1 has too few vCPUs left (4 of 8, by cpu_overcommit)", "1 is emptied in the same plan"),
        ):
            assert part in answer.reason

    @pytest.mark.parametrize(
        ("leaving", "says"),
        [
            (["b"], "an evacuation is emptying it"),
            ([], "its last evacuation ended with guests left on it, so it takes none: "),
        ],
        ids=["is emptied", "was left"],
    )
    def test_of_a_host_that_drains_tells_whether_anybody_empties_it(
        self, leaving: list[str], says: str
    ) -> None:
        one, hosts = guest("g", "a"), [host("a"), host("b", state=HostState.DRAINING)]
        found = check(Fleet(hosts=hosts, guests=[one], leaving=leaving), PlacementRequest(guest=one), "b")
        (drains,) = [each for each in found if each.constraint is Constraint.DRAINING]
        assert drains.text.startswith(says)
        # What was left says with which commands it goes on.
        assert ("migrator activate b" in drains.text) is not bool(leaving)

    def test_with_no_other_host_says_so(self) -> None:
        assert emptied([host("a")], [guest("g", "a")], "a")["g"].reason == "there is no other host"

    def test_of_one_host_names_every_constraint_that_does_not_fit(self) -> None:
        hosts = [host("a"), host("b", 1, kvm=False, cpus=1, labels={"ssd": "no"}, up=False, error="no route")]
        one = guest("g", "a", 4, vcpus=2, requires={"ssd": "yes"}, anti_affinity="db")
        fleet = Fleet(hosts=hosts, guests=[one, guest("other", "b", 0.5, anti_affinity="db")])
        found = check(fleet, PlacementRequest(guest=one, only="c", excluded={"b": "it failed there"}), "b")
        assert {entry.constraint: entry.text for entry in found if not entry.fits} == {
            Constraint.DOWN: "it does not answer: no route",
            Constraint.NOT_ASKED_FOR: "it shall go to c",
            Constraint.EXCLUDED: "it failed there",
            Constraint.KVM: "it runs under KVM, which is missing there",
            Constraint.LABEL: "lacks label ssd=yes (has ssd=no)",
            Constraint.ANTI_AFFINITY: "1 other guest with anti-affinity 'db' there",
            Constraint.MEMORY: "512.0 MiB of memory left, 4.0 GiB needed",
            Constraint.CPU: "0 vCPUs left, 2 needed (1 CPUs, 1 vCPUs on each: cpu_overcommit)",
        }

    def test_of_a_host_that_does_not_exist_is_an_error(self) -> None:
        with pytest.raises(KeyError):
            check(Fleet(hosts=[], guests=[]), PlacementRequest(guest=guest("g", "a")), "b")


def test_a_site_that_is_full_is_answered_within_its_bound_of_tries() -> None:
    hosts = [host("a", 4096), *(host(f"h{n}", 7) for n in range(60))]
    guests = [guest(f"g{n}", "a", 2 + n % 3) for n in range(400)]
    began = time.perf_counter()
    answers = emptied(hosts, guests, "a")
    assert time.perf_counter() - began < 10
    assert any(isinstance(answer, NoHost) for answer in answers.values())
    assert sum(isinstance(answer, Placement) for answer in answers.values()) >= 170

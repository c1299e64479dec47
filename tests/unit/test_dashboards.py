"""Dashboards, rules and runbook: up to date, complete, and naming only what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]

from dashboards.board import read_back, threshold
from dashboards.build import texts
from migrator.metrics.catalogue import BY_NAME
from migrator.metrics.definition import Kind

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "dashboards" / "rules"
BOARDS = {name.removesuffix(".json"): json.loads(text) for name, text in texts().items()}
#: What Prometheus makes of a scrape and of alerts, with the labels used of them.
PROMETHEUS = {
    "up": set(),
    "scrape_duration_seconds": set(),
    "ALERTS": {"alertname", "alertstate", "severity", "guest", "host", "evacuation"},
}
#: Put on by the scrape.
TARGET = {"job", "instance", "site"}


def _rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / f"{name}.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in _rules("recording")}
ALERTS = {rule["alert"]: rule for rule in _rules("alerts")}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


EVERY_PANEL = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in panels(board)
]


def put_in(expr: str) -> str:
    """A panel's query as Grafana would send it."""
    expr = expr.replace("$__rate_interval", "1m").replace("$__range", "1h")
    return re.sub(r"\$\w+", ".*", expr)


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        child = getattr(node, name, None)
        if child is not None and not isinstance(child, str):
            yield from selectors(child)
    for child in getattr(node, "args", ()):
        yield from selectors(child)


def labels_of(name: str) -> set[str] | None:
    """The labels that a metric has beside the target's; ``None`` where there is no such metric."""
    if name in PROMETHEUS:
        return set(PROMETHEUS[name])
    if name in RECORDED:
        inside = [labels_of(each.name) or set() for each in selectors(promql_parser.parse(RECORDED[name]))]
        return set().union(*inside)
    if name in BY_NAME:
        return None if BY_NAME[name].kind is Kind.HISTOGRAM else set(BY_NAME[name].labels)
    for suffix in ("_bucket", "_sum", "_count"):
        described = BY_NAME.get(name.removesuffix(suffix))
        if name.endswith(suffix) and described is not None and described.kind is Kind.HISTOGRAM:
            return {*described.labels, "le"} if suffix == "_bucket" else set(described.labels)
    return None


def assert_exists(expr: str) -> None:
    found = list(selectors(promql_parser.parse(expr)))
    for each in found:
        labels = labels_of(each.name)
        assert labels is not None, f"there is no metric {each.name}"
        unknown = {matcher.name for matcher in each.matchers.matchers} - labels - TARGET
        assert not unknown, f"{each.name} has no label {unknown}"


# Dashboards ------------------------------------------------------------------------------------------------------


def test_the_files_are_up_to_date() -> None:
    for name, text in texts().items():
        assert (ROOT / "dashboards" / name).read_text(encoding="utf-8") == text, "python -m dashboards.build"


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_own_model_reads_all_of_it(name: str) -> None:
    assert read_back(BOARDS[name]) == BOARDS[name]


def test_dashboards_and_panels_are_told_apart() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS) == 5
    for board in BOARDS.values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        titles = [(panel["title"], panel["type"]) for panel in panels(board)]
        assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap_and_fill_their_rows(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]
    rows = {y for _, y in taken}
    assert rows == set(range(len(rows))), "an empty row"


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 5
    assert panel["description"].endswith((".", ")."))
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_names_only_what_exists(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert_exists(put_in(target["expr"]))


def test_columns_of_tables_are_labels_of_what_is_asked() -> None:
    tables = [panel for board in BOARDS.values() for panel in panels(board) if panel["type"] == "table"]
    assert len(tables) >= 5
    for panel in tables:
        labels = (
            {"Value"}
            if len(panel["targets"]) == 1
            else {f"Value #{each['refId']}" for each in panel["targets"]}
        )
        for target in panel["targets"]:
            for each in selectors(promql_parser.parse(put_in(target["expr"]))):
                labels |= (labels_of(each.name) or set()) | TARGET
        assert set(panel["transformations"][-1]["options"]["renameByName"]) <= labels


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_is_there_and_used(name: str) -> None:
    board = BOARDS[name]
    there = {each["name"] for each in board["templating"]["list"]}
    text = json.dumps(board)
    used = set(re.findall(r"\$\{?([a-z]+)\b", text)) - {"g"}
    assert {"datasource", "job", "instance"} <= there
    assert used == there
    for each in board["templating"]["list"]:
        if each["type"] == "query":
            asked = each["query"]["query"]
            if asked.startswith("query_result("):
                assert_exists(put_in(asked.removeprefix("query_result(")[:-1]))
                continue
            inside = re.fullmatch(r"label_values\((.*), (\w+)\)", asked)
            assert inside is not None
            assert_exists(put_in(inside[1]))
            [selector] = selectors(promql_parser.parse(put_in(inside[1])))
            assert inside[2] in (labels_of(selector.name) or set()) | TARGET


def test_guests_are_chosen_by_name_and_used_by_key() -> None:
    results = (
        'migrator_guest_info{guest="u-1",host="a",instance="i:1",job="migrator",name="web \\"1\\""} 1 1764490000000',
        '{guest="u-1",host="a",name="web \\"1\\",",site="s"} 1 1764490000000',
    )
    for name in ("fleet", "migration"):
        [variable] = [each for each in BOARDS[name]["templating"]["list"] if each["name"] == "guest"]
        pattern = variable["regex"].removeprefix("/").removesuffix("/g").replace("?<", "?P<")
        for result in results:
            found = [match.groupdict() for match in re.finditer(pattern, result)]
            assert [each["value"] for each in found if each["value"]] == ["u-1"]
            assert next(each["text"] for each in found if each["text"]).startswith('web \\"1\\"')


def test_links_lead_to_dashboards_that_exist_and_set_variables_that_they_have() -> None:
    uids = {board["uid"]: board for board in BOARDS.values()}
    seen = 0
    for board in BOARDS.values():
        assert {link["type"] for link in board["links"]} == {"dashboards", "link"}
        for url in re.findall(r'"url": "(/d/[^"]*)"', json.dumps(board)):
            uid = url.removeprefix("/d/").partition("?")[0]
            there = {each["name"] for each in uids[uid]["templating"]["list"]}
            assert set(re.findall(r"var-(\w+)=", url)) <= there
            seen += 1
    assert seen >= 4


def test_tables_lead_to_views_of_the_page() -> None:
    views = set()
    for board in BOARDS.values():
        for view, column in re.findall(
            r"\$\{page\}/#/(\w+)/\$\{__data\.fields\.(\w+):percentencode\}", json.dumps(board)
        ):
            views.add((view, column))
            tables = [panel for panel in panels(board) if panel["type"] == "table"]
            shown = [
                set(panel["transformations"][-1]["options"]["renameByName"].values()) for panel in tables
            ]
            assert any(column in columns for columns in shown)
    assert {view for view, _ in views} == {"guests", "hosts", "migrations", "evacuations"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("fleet", ["Evacuations"]),
        ("evacuation", ["Evacuations", "Decisions"]),
        ("host", ["Evacuations", "Decisions"]),
        ("migration", ["Decisions"]),
    ],
)
def test_evacuations_and_decisions_are_annotations(name: str, shown: list[str]) -> None:
    annotations = BOARDS[name]["annotations"]["list"]
    assert [each["name"] for each in annotations] == shown
    for each in annotations:
        assert_exists(put_in(each["expr"]))
        assert each.get("useValueForTime", False) is (each["name"] == "Decisions")


def test_every_metric_of_the_list_is_on_a_dashboard_or_in_a_rule() -> None:
    exprs = [
        target["expr"] for board in BOARDS.values() for panel in panels(board) for target in panel["targets"]
    ]
    exprs += [*RECORDED.values(), *(rule["expr"] for rule in ALERTS.values())]
    exprs += [each["expr"] for each in BOARDS["migration"]["annotations"]["list"]]
    named = {
        re.sub(r"_(bucket|sum|count)$", "", each.name)
        for expr in exprs
        for each in selectors(promql_parser.parse(put_in(expr)))
    }
    # Looked up by the alerts' texts and by a variable.
    assert set(BY_NAME) - named == {"migrator_link_info"}


# Rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expr", [*RECORDED.values(), *(rule["expr"] for rule in ALERTS.values())])
def test_a_rule_names_only_what_exists(expr: str) -> None:
    assert_exists(expr)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_complete(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"]
    assert alert["annotations"]["runbook_url"].endswith(
        f"{{{{ else }}}}docs/runbook.md{{{{ end }}}}#{name.lower()}"
    )
    for query in re.findall(r'printf "(\S+)" ', alert["annotations"]["summary"]):
        assert_exists(query.replace("%q", '"x"'))
    for query in re.findall(r'printf "(\S+)" ', alert["annotations"]["description"]):
        assert_exists(query.replace("%q", '"x"'))


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert {section.partition("\n")[0] for section in sections} == set(ALERTS)
    for section in sections:
        assert [part for part in ("**Means:**", "**Check:**", "**Do:**") if part not in section] == []
    anchors = {f"#{name.lower()}" for name in ALERTS}
    assert set(re.findall(r"\]\((#\w+)\)", text)) <= anchors
    for file in re.findall(r"\]\((\w+\.md)\)", text):
        assert (ROOT / "docs" / file).exists()


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    cases = yaml.safe_load((RULES / "tests.yml").read_text(encoding="utf-8"))["tests"]
    firing: set[str] = set()
    silent: set[str] = set()
    for case in cases:
        checks = case["alert_rule_test"]
        for name in {check["alertname"] for check in checks}:
            expected = [bool(check["exp_alerts"]) for check in checks if check["alertname"] == name]
            (firing if any(expected) else silent).add(name)
    assert firing == silent == set(ALERTS)


def test_thresholds_are_shared() -> None:
    text = json.dumps(BOARDS) + (RULES / "alerts.yml").read_text(encoding="utf-8")
    for name in RECORDED:
        if name.endswith(":threshold"):
            assert name in text or threshold(name.split(":")[1])


def test_promtool_takes_rules_and_configuration(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool here")
    for command in (
        ["check", "config", "--lint=all", "--lint-fatal", str(ROOT / "config" / "prometheus.yml")],
        ["check", "rules", "--lint-fatal", str(RULES / "recording.yml"), str(RULES / "alerts.yml")],
        ["test", "rules", str(RULES / "tests.yml")],
    ):
        ran = subprocess.run(
            ["promtool", *command], capture_output=True, timeout=60, check=False, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stdout.decode() + ran.stderr.decode()


def test_a_fault_becomes_an_alert_within_a_minute() -> None:
    config = yaml.safe_load((ROOT / "config" / "prometheus.yml").read_text(encoding="utf-8"))["global"]
    assert (config["scrape_interval"], config["evaluation_interval"]) == ("10s", "10s")
    for name, alert in ALERTS.items():
        # The second is recovered by itself, nearly always sooner.
        if name not in ("MigratorEventLoopLate", "MigratorPostcopyBroken"):
            assert alert["for"] == "15s", name
    groups = yaml.safe_load((RULES / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    groups += yaml.safe_load((RULES / "recording.yml").read_text(encoding="utf-8"))["groups"]
    assert {group["interval"] for group in groups} == {"10s"}
    # Scrape, evaluation of what is recorded, and two more until 15 s have passed.
    assert 10 + 10 + 10 + 20 < 60


def test_grafana_is_provisioned_with_what_is_there() -> None:
    folder = ROOT / "config" / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "migrator.yml").read_text(encoding="utf-8"))[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    [provider] = yaml.safe_load((folder / "dashboards" / "migrator.yml").read_text(encoding="utf-8"))[
        "providers"
    ]
    assert provider["type"] == "file"

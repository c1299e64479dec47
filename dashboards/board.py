"""Parts of the dashboards: panels in rows, variables, links."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

RULES = Path(__file__).parent / "rules"
#: What every query of the service's own series is limited to.
ALL = 'job=~"$job", instance=~"$instance"'
#: Recorded over all controllers of a job.
RECORDED = 'job=~"$job"'
#: A panel with rows for what is wrong shows this one when nothing is.
NOTHING = 'label_replace(vector(0), "{label}", "nothing", "", "")'
_WIDTH = 24


def threshold(name: str) -> float:
    """The value of the recorded threshold ``migrator:NAME:threshold``."""
    text = (RULES / "recording.yml").read_text(encoding="utf-8")
    found = re.search(rf"record: migrator:{name}:threshold\s+expr: vector\(([\d.]+)\)", text)
    if found is None:
        raise LookupError(f"recording.yml has no threshold {name}")
    return float(found[1])


def query(
    expr: str, legend: str = "", *, instant: bool = False, rows: bool = False, exemplar: bool = False
) -> prometheus.Dataquery:
    """One query; `rows` for a table."""
    made = prometheus.Dataquery().datasource(source()).expr(" ".join(expr.split()))
    made = made.format(PromQueryFormat.TABLE if rows else PromQueryFormat.TIME_SERIES)
    made = made.instant() if instant or rows else made.range()
    if exemplar:
        made = made.exemplar(True)
    return made.legend_format(legend or "__auto")


def source() -> common.DataSourceRef:
    """The data source that the variable names."""
    return common.DataSourceRef(type_val="prometheus", uid="${datasource}")


def steps(*colours: tuple[float | None, str]) -> build.ThresholdsConfig:
    """Colours from values upwards, the first from ``None``."""
    made = [dashboard.Threshold(value=value, color=colour) for value, colour in colours]
    return build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)


PLAIN = ((None, "text"),)
GOOD_AT_ZERO = ((None, "green"), (1.0, "red"))
BAD_AT_ZERO = ((None, "red"), (1.0, "green"))


def figure(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    span: int,
    legend: str = "",
    colours: Sequence[tuple[float | None, str]] = PLAIN,
    nothing: str = "–",
    name: bool = False,
) -> stat.Panel:
    """One number, now; with `name`, the legend is what is shown."""
    panel = stat.Panel().title(title).description(description).unit(unit).height(4).span(span)
    panel = panel.datasource(source()).with_target(query(expr, legend, instant=True).ref_id("A"))
    panel = panel.thresholds(steps(*colours)).no_value(nothing)
    panel = panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.graph_mode(common.BigValueGraphMode.NONE)
    panel = panel.color_mode(common.BigValueColorMode.VALUE)
    mode = common.BigValueTextMode.NAME if name else common.BigValueTextMode.VALUE
    return panel.text_mode(mode)


def curves(
    title: str,
    description: str,
    unit: str,
    *queries: prometheus.Dataquery,
    span: int = 12,
    height: int = 8,
    limit: str = "",
    most: float | None = None,
) -> timeseries.Panel:
    """Curves over time; `limit` names the recorded threshold that is drawn as a broken line."""
    panel = timeseries.Panel().title(title).description(description).unit(unit).height(height).span(span)
    panel = panel.datasource(source()).min(0) if most is not None else panel.datasource(source())
    if most is not None:
        panel = panel.max(most)
    for number, each in enumerate(queries):
        panel = panel.with_target(each.ref_id(chr(ord("A") + number)))
    if limit:
        panel = panel.with_target(query(f"migrator:{limit}:threshold", "threshold").ref_id("T"))
        panel = panel.override_by_name("threshold", _BROKEN_LINE)
    panel = panel.line_width(2).fill_opacity(8).show_points(common.VisibilityMode.NEVER)
    panel = panel.tooltip(VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    return panel.legend(
        VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


_BROKEN_LINE = [
    dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "red"}),
    dashboard.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
    dashboard.DynamicConfigValue("custom.fillOpacity", 0),
]


def rows(
    title: str,
    description: str,
    unit: str,
    *exprs: str,
    columns: dict[str, str],
    span: int = _WIDTH,
    height: int = 7,
    units: dict[str, str] | None = None,
    links: Sequence[build.DashboardLink] = (),
) -> table.Panel:
    """A table of what instant queries give, joined by their labels.

    :param columns: label (or ``Value``, ``Value #A``) to heading, in this order; what is not named is not shown.
    :param units: of headings that have another than `unit`.
    """
    panel = table.Panel().title(title).description(description).unit(unit).height(height).span(span)
    panel = panel.datasource(source()).no_value("nothing")
    for number, expr in enumerate(exprs):
        panel = panel.with_target(query(expr, rows=True).ref_id(chr(ord("A") + number)))
    if len(exprs) > 1:
        panel = panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    keep = {"include": {"names": list(columns)}}
    panel = panel.with_transformation(
        dashboard.DataTransformerConfig(id_val="filterFieldsByName", options=keep)
    )
    order = {"indexByName": {name: place for place, name in enumerate(columns)}, "renameByName": columns}
    panel = panel.with_transformation(
        dashboard.DataTransformerConfig(id_val="organize", options={"excludeByName": {}, **order})
    )
    for heading, other in (units or {}).items():
        panel = panel.override_by_name(heading, [dashboard.DynamicConfigValue("unit", other)])
    return panel.data_links(list(links)) if links else panel


def to(title: str, uid: str, **variables: str) -> build.DashboardLink:
    """A link from a row of a table to a dashboard, with variables from the row's columns."""
    given = "".join(f"&var-{name}=${{__data.fields.{column}}}" for name, column in variables.items())
    same = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
    return build.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(f"/d/{uid}?{same}{given}")


def on_page(title: str, view: str, column: str) -> build.DashboardLink:
    """A link from a row of a table to the service's page: what the row's column names, in that view."""
    # As one part of a path: what has no uuid is known by its host and name, or by its socket.
    url = f"${{page}}/#/{view}/${{__data.fields.{column}:percentencode}}"
    return build.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url).target_blank(True)


def named_guests(which: str) -> str:
    """The query of a variable for guests by these series of ``migrator_guest_info``: chosen by name, used by key."""
    return f"query_result({which})"


#: What is shown of such a result, and what stands for it.
_NAMED_GUEST = r'/[{,]guest="(?<value>(?:[^"\\]|\\.)+)|[{,]name="(?<text>(?:[^"\\]|\\.)+)/g'


def evacuations_shown(series: str) -> build.AnnotationQuery:
    """Annotations from the begin to the end of each evacuation that has these series."""
    made = build.AnnotationQuery().name("Evacuations").datasource(source()).enable(True)
    made = made.expr(f"{series} >= bool 0").title_format("{{host}}").text_format("{{evacuation}}")
    return made.icon_color("blue")


def decisions_shown(series: str, *, enabled: bool = True) -> build.AnnotationQuery:
    """An annotation for the last decision of each kind that has these series."""
    made = build.AnnotationQuery().name("Decisions").datasource(source()).enable(enabled)
    made = made.expr(f"{series} * 1000").use_value_for_time(True)
    return made.title_format("{{action}}").text_format("{{migration}}").icon_color("orange")


def _variable(name: str, label: str, values: str, *, many: bool) -> build.QueryVariable:
    made = build.QueryVariable(name).label(label).query({"query": values, "refId": name})
    made = made.datasource(source()).refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    made = made.sort(dashboard.VariableSort.ALPHABETICAL_ASC).multi(many).include_all(many)
    if values.startswith("query_result"):
        made = made.regex(_NAMED_GUEST)
    if many:
        every = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])
        return made.all_value(".*").current(every)
    return made


def board(
    uid: str,
    title: str,
    description: str,
    sections: Sequence[tuple[str, Sequence[Any]]],
    *,
    host: str = "",
    guest: str = "",
    one_host: bool = False,
    view: str = "",
    annotations: Sequence[build.AnnotationQuery] = (),
) -> dict[str, Any]:
    """A dashboard as JSON.

    :param host: the query for the values of the variable ``host``; empty for none.
    :param guest: likewise; one is chosen where it comes from migrations.
    :param one_host: one is chosen, not several.
    :param view: of the service's page, that the link to it opens.
    """
    made = build.Dashboard(title).uid(uid).description(description).tags(["migrator"])
    made = made.refresh("10s").time("now-1h", "now").timezone("browser").readonly()
    made = made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made = made.with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    made = made.with_variable(_variable("job", "Job", "label_values(migrator_build_info, job)", many=True))
    of_job = 'label_values(migrator_build_info{job=~"$job"}, instance)'
    made = made.with_variable(_variable("instance", "Controller", of_job, many=True))
    if host:
        made = made.with_variable(_variable("host", "Host", host, many=not one_host))
    if guest:
        made = made.with_variable(_variable("guest", "Guest", guest, many="migration" not in guest))
    page = 'label_values(migrator_link_info{job=~"$job"}, page)'
    made = made.with_variable(_variable("page", "Page of the service", page, many=False))
    others = build.DashboardLink("migrator").type(dashboard.DashboardLinkType.DASHBOARDS).tags(["migrator"])
    made = made.link(others.include_vars(True).keep_time(True))
    own = (
        build.DashboardLink("Page of the service")
        .type(dashboard.DashboardLinkType.LINK)
        .url(f"${{page}}/#/{view}")
    )
    made = made.link(own.target_blank(True))
    for each in annotations:
        made = made.annotation(each)
    for heading, panels in sections:
        made = made.with_row(build.Row(heading))
        for panel in panels:
            made = made.with_panel(panel)
    built = made.build()
    for number, panel in enumerate(built.panels or (), start=1):
        panel.id_val = number
    for link in built.links or ():
        # Above the panels, where it is seen, not in a menu; the SDK knows no other place.
        link.placement = None  # type: ignore[assignment]
    return dict(json.loads(JSONEncoder(sort_keys=True).encode(built)))


def read_back(board: dict[str, Any]) -> dict[str, Any]:
    """Return a dashboard's JSON as the SDK has read it, without what it does not know."""
    read = dashboard.Dashboard.from_json(json.loads(json.dumps(board)))
    for link in read.links or ():
        link.placement = None  # type: ignore[assignment]
    return dict(json.loads(JSONEncoder(sort_keys=True).encode(read)))

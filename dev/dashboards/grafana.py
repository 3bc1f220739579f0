"""Dashboards as the JSON that Grafana reads, made with Grafana's own foundation SDK."""

import json
from itertools import count

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models

from dev.dashboards.panels import Dashboard, Panel

_DATA_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT, _FIGURE_HEIGHT = 8, 4
_COLOURS = models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME


def as_json(dashboard: Dashboard) -> str:
    """Return a dashboard's JSON, the same for each call."""
    built = _build(dashboard).build()
    return json.dumps(built, cls=JSONEncoder, sort_keys=True, indent=1) + "\n"


def _build(dashboard: Dashboard) -> builders.Dashboard:
    page = (
        builders.Dashboard(dashboard.title)
        .uid(dashboard.uid)
        .description(dashboard.description)
        .tags(["finetune-operator"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time(f"now-{dashboard.hours}h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in dashboard.variables:
        page.with_variable(
            builders.QueryVariable(variable.name)
            .label(variable.label)
            .query({"query": variable.query, "refId": variable.name})
            .datasource(_DATA_SOURCE)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
        )
    numbers = count(1)
    for row in dashboard.rows:
        page.with_row(builders.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            built = _figure(panel) if panel.is_figure else _curves(panel)
            page.with_panel(built.id(next(numbers)))
    return page


def _curves(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(_DATA_SOURCE)
        .span(panel.width)
        .height(_HEIGHT)
        .line_width(1)
        .fill_opacity(25 if panel.is_stacked else 5)
        .show_points(options.VisibilityMode.NEVER)
        .color_scheme(builders.FieldColor().mode(_COLOURS))
        .legend(common.VizLegendOptions().show_legend(True).placement(options.LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
    )
    if panel.is_stacked:
        built.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    if panel.minimum is not None:
        built.min(panel.minimum)
    if panel.maximum is not None:
        built.max(panel.maximum)
    for target in _targets(panel):
        built.with_target(target)
    return built


def _figure(panel: Panel) -> stat.Panel:
    built = (
        stat.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(_DATA_SOURCE)
        .span(panel.width)
        .height(_FIGURE_HEIGHT)
        .color_mode(options.BigValueColorMode.NONE)
        .graph_mode(options.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    for target in _targets(panel):
        built.with_target(target)
    return built


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(chr(ord("A") + index))
        for index, query in enumerate(panel.queries)
    ]

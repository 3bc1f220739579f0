"""The Grafana dashboards of the chart as code: what they show in `run` and `fleet`, how Grafana is told in `grafana`.

`make generate` writes their JSON into the chart, and `make lint` compares it. `picture` draws a dashboard's panels from
what a Prometheus has.
"""

from dev.dashboards.fleet import FLEET
from dev.dashboards.grafana import as_json
from dev.dashboards.panels import Dashboard
from dev.dashboards.run import RUN

DASHBOARDS: dict[str, Dashboard] = {"run": RUN, "fleet": FLEET}

__all__ = ["DASHBOARDS", "Dashboard", "as_json"]

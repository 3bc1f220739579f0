"""The preflight report as one page that opens in any browser and needs nothing else."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_trainer.data.report import DataReport

_PAGES = Environment(
    loader=PackageLoader("finetune_trainer.data", package_path=""),
    autoescape=True,  # what rows say must not become markup
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


def render_page(report: DataReport, job: str, model: str) -> str:
    """Return the report as HTML.

    Args:
        report: what became of the rows.
        job: namespace and name of the job.
        model: what the model is called.
    """
    return _PAGES.get_template("report.html.jinja").render(report=report, job=job, model=model)

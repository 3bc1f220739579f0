"""Log lines: JSON with the job they are about, or text for a terminal. No line carries a manifest's content."""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from finetune_operator.settings import LogFormat, Settings


def configure_logging(settings: Settings) -> None:
    """Send the log lines of the operator and of its libraries to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format is LogFormat.JSON:
        renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter("{asctime}{levelname}{name}{message}", style="{", rename_fields=renamed))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.value, handlers=[handler], force=True)
    # kopf tells of every watch and every handler; what matters of it is a warning.
    logging.getLogger("kopf").setLevel(logging.WARNING)

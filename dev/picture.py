"""Draws the screen of `kubectl finetune watch` of a running job as the SVG that the README shows.

python -m dev.picture NAME [--namespace NAMESPACE] [--step STEP]    waits until the job has done so many steps
"""

import argparse
import io
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from finetune_cli.cluster import Cluster
from finetune_cli.commands.watch import Watcher
from finetune_cli.draw.watch import Screen, draw_watch

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "watch.svg"
_WIDTH = 118


def main() -> int:
    """Watch a job until it has done some steps, and draw it then."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--namespace")
    parser.add_argument("--step", type=int, default=10)
    arguments = parser.parse_args()
    watcher = Watcher(Cluster.open(None, None, arguments.namespace), arguments.name)
    while True:
        screen = watcher.look()
        progress = screen.job.status.progress
        if screen.job.has_ended or (progress is not None and progress.step >= arguments.step):
            break
        time.sleep(1)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(svg(screen, datetime.now(UTC)), encoding="utf-8")
    print(PICTURE)
    return 0


def svg(screen: Screen, now: datetime) -> str:
    """Return a screen as a picture of a terminal."""
    console = Console(width=_WIDTH, record=True, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(draw_watch(screen, now, _WIDTH))
    picture = console.export_svg(title=f"kubectl finetune watch {screen.job.name}")
    # rich's own font comes from somewhere else on the web; a page of ours fetches nothing from there.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())

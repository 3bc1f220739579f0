"""Draws the screen of `kubectl finetune watch` of a running job as the SVG that the README shows.

python -m dev.picture NAME [--namespace NAMESPACE] [--step STEP]    waits until the job has done so many steps
"""

import argparse
import html
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
_SPACE = "&#160;"
_CHARACTER_WIDTH = 12.2  # of rich's pictures
_TEXT = re.compile(r'x="(?P<x>[\d.]+)" (?P<y>y="[\d.]+") textLength="[\d.]+" (?P<clip>[^>]*)>(?P<text>[^<]+)</text>')


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
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    return _TEXT.sub(_without_outer_spaces, picture)


def _without_outer_spaces(found: re.Match[str]) -> str:
    """Put a text where its first letter is: some programs that draw leave out spaces at its ends."""
    text = found["text"]
    inner = re.sub(rf"^(?:{_SPACE})+|(?:{_SPACE})+$", "", text)
    num_leading = text.find(inner) // len(_SPACE) if inner else 0
    x = float(found["x"]) + num_leading * _CHARACTER_WIDTH
    length = len(html.unescape(inner)) * _CHARACTER_WIDTH
    return f'x="{x:.5g}" {found["y"]} textLength="{length:.5g}" {found["clip"]}>{inner}</text>'


if __name__ == "__main__":
    sys.exit(main())

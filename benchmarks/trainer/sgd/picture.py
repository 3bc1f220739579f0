"""Draws loss curves: `python -m benchmarks.trainer.sgd.picture out.svg "one epoch=losses.json" ...`."""

import json
import sys
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 16, 40
COLOURS = ("#3274d9", "#e0752d", "#56a64b")
MEAN_OF_STEPS = 20
HIGHEST, LOSS_TICKS = 1.5, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
TRIAL = "long-best"


def main(arguments: list[str]) -> int:
    """Draw the curves that `name=losses.json` name, one colour each."""
    curves = {name: read_losses(Path(path)) for name, path in (argument.split("=", 1) for argument in arguments[1:])}
    Path(arguments[0]).write_text(draw(curves), encoding="utf-8")
    return 0


def read_losses(path: Path) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the loss of each step of the long training."""
    return np.array(json.loads(path.read_text(encoding="utf-8"))[TRIAL])


def draw(curves: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]) -> str:
    """Return an SVG: faint the loss of each step, strong the mean of the last steps."""
    num_steps = max(len(losses) for losses in curves.values())

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / num_steps

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(loss, HIGHEST) / HIGHEST)

    def line(losses: np.ndarray[tuple[int], np.dtype[np.float64]], first: int, style: str) -> str:
        points = " ".join(f"{x(first + step):.1f},{y(loss):.1f}" for step, loss in enumerate(losses))
        return f'<polyline points="{points}" fill="none" {style}/>'

    marks = [_tick(LEFT - 6, y(loss) + 4, f"{loss:g}", "end") + _grid(y(loss)) for loss in LOSS_TICKS]
    marks += [_tick(x(step), HEIGHT - BOTTOM + 16, str(step), "middle") for step in range(0, num_steps + 1, 200)]
    marks.append(_tick((LEFT + WIDTH) / 2, HEIGHT - 6, "step", "middle"))
    for number, ((name, losses), colour) in enumerate(zip(curves.items(), COLOURS, strict=False)):
        marks.append(line(losses, 1, f'stroke="{colour}" stroke-opacity="0.2"'))
        means = np.convolve(losses, np.full(MEAN_OF_STEPS, 1 / MEAN_OF_STEPS), "valid")
        marks.append(line(means, MEAN_OF_STEPS, f'stroke="{colour}" stroke-width="2"'))
        top = TOP + 14 + 18 * number
        marks.append(f'<rect x="{WIDTH - 240}" y="{top - 9}" width="10" height="10" fill="{colour}"/>')
        marks.append(_tick(WIDTH - 224, top, f"{name}, mean of {MEAN_OF_STEPS} steps", "start"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            'font-size="12"><rect width="100%" height="100%" fill="white"/>',
            *marks,
            "</svg>\n",
        ]
    )


def _tick(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333">{text}</text>'


def _grid(y: float) -> str:
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

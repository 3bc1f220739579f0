"""From judged turns to scores: ratios over rows, with bootstrap intervals.

Rows are what is drawn again and again (Efron 1979), because the turns of one conversation are not independent. Every
metric is a ratio of two sums over rows; for the loss they are the summed loss and the number of tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune_trainer.contract.evaluation import Measure, Metric, Scores, ToolScores, perplexity
from finetune_trainer.evaluate.comparison import TurnScore

NUM_RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles
MAX_DRAWS_AT_ONCE = 4_000_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What one model did on all rows."""

    scores: Sequence[TurnScore]
    rows: Sequence[int]  # row of each turn
    losses: Floats  # [num_rows], summed over the trained tokens of each row
    num_tokens: Floats  # [num_rows]


# What each turn adds to the numerator and to the denominator of a metric.
_RATIOS: dict[Metric, tuple[Callable[[TurnScore], float], Callable[[TurnScore], bool]]] = {
    Metric.FUNCTION_ACCURACY: (lambda turn: turn.functions_right, lambda turn: turn.should_call),
    Metric.EXACT_ARGUMENTS: (lambda turn: turn.exact, lambda turn: turn.should_call),
    Metric.ARGUMENT_F1: (lambda turn: turn.argument_f1, lambda turn: turn.should_call),
    Metric.CALL_ACCURACY: (lambda turn: turn.should_call == turn.calls, lambda _: True),
    Metric.VALID_JSON: (lambda turn: turn.is_valid, lambda turn: turn.calls),
    Metric.HALLUCINATED_FUNCTIONS: (lambda turn: turn.hallucinates, lambda turn: turn.calls),
}


def make_scores(judged: Judged, seed: int) -> Scores:
    """Return every metric that the rows let be measured.

    Args:
        judged: what a model did.
        seed: of the bootstrap; the same for both models, so that both are measured on the same draws.
    """
    num_rows = len(judged.losses)
    measures: dict[str, Measure | None] = {}
    for metric, (numerator, denominator) in _RATIOS.items():
        sums = np.zeros((2, num_rows))
        for row, turn in zip(judged.rows, judged.scores, strict=True):
            if denominator(turn):
                sums[:, row] += numerator(turn), 1
        measures[metric] = measure_ratio(sums[0], sums[1], seed)
    loss = measure_ratio(judged.losses, judged.num_tokens, seed)
    measures |= {Metric.LOSS: loss, Metric.PERPLEXITY: perplexity(loss) if loss is not None else None}
    return Scores.model_validate(measures)


def measure_ratio(numerators: Floats, denominators: Floats, seed: int) -> Measure | None:
    """Return sum / sum over rows with its percentile bootstrap interval; None where the denominators are all zero."""
    total = float(denominators.sum())
    if total == 0:
        return None
    random = np.random.default_rng(seed)
    num_rows = len(numerators)
    ratios = []
    at_once = max(1, min(NUM_RESAMPLES, MAX_DRAWS_AT_ONCE // num_rows))
    for start in range(0, NUM_RESAMPLES, at_once):
        size = min(at_once, NUM_RESAMPLES - start)
        counts = random.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size)
        drawn = counts @ denominators
        ratios.append((counts @ numerators)[drawn > 0] / drawn[drawn > 0])
    low, high = np.percentile(np.concatenate(ratios), INTERVAL)
    return Measure(value=float(numerators.sum()) / total, low=float(low), high=float(high), count=round(total))


def score_tools(base: Sequence[TurnScore], tuned: Sequence[TurnScore]) -> tuple[ToolScores, ...]:
    """Return how well each function is called by both models, the most frequent first."""
    turns: Counter[str] = Counter(name for turn in tuned for name in turn.tools)
    sums: dict[str, Floats] = defaultdict(lambda: np.zeros(4))
    for before, after in zip(base, tuned, strict=True):
        for name in after.tools:
            one, other = before.tools[name], after.tools[name]
            sums[name] += one.called, other.called, one.exact, other.exact
    return tuple(
        ToolScores(
            tool=name,
            turns=count,
            base_function_accuracy=sums[name][0] / count,
            tuned_function_accuracy=sums[name][1] / count,
            base_exact_arguments=sums[name][2] / count,
            tuned_exact_arguments=sums[name][3] / count,
        )
        for name, count in sorted(turns.items(), key=lambda entry: (-entry[1], entry[0]))
    )

"""What happens next to a job: one step from what is towards what should be.

Pure and level-triggered: it looks at what is there, never at what happened, so a restart of the operator, a lost event
or a deleted child needs no code of its own. Deciding again on what a decision has led to decides nothing new.

    accepted -> prepare Job -> attempt 1: a gang -> succeeded | failed
                            `-> attempt 2 ...     (from the last checkpoint, when attempt 1 broke off)

`job` is the story, with `suspend` beside it; `prepare` and `train` are its stages. `ending` knows how an attempt ends,
`failures` why, and `attempts` what follows; `storage` whether there is room for what is still to be written; `children`
what to make and what is in the way, `questions` when to ask rank 0; `decision` what goes in and what comes out.

What was decided before stands in the status alone. An attempt's objects have its number in their names, so those that
were made before the operator was stopped, and before it could tell so, are found again.
"""

from finetune_operator.decide.attempts import under_way
from finetune_operator.decide.children import name_taken
from finetune_operator.decide.decision import Decision, Timing
from finetune_operator.decide.job import decide, refuse
from finetune_operator.decide.questions import FIRST_QUESTION_SECONDS, ask_again_after_seconds

__all__ = [
    "FIRST_QUESTION_SECONDS",
    "Decision",
    "Timing",
    "ask_again_after_seconds",
    "decide",
    "name_taken",
    "refuse",
    "under_way",
]

"""The evaluate stage: what base and tuned model are worth on rows that training never saw.

Story, top to bottom: `turns` makes questions of the held-out rows, `answers` lets a model write and reads its calls,
`comparison` judges one turn, `likelihood` measures the loss, `statistics` makes scores with intervals of both, and
`stage` is the verb that does all of it, applies the gate and exports.
"""

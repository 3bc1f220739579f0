"""Commands for a person with an adapter in hand: does it call functions, how fast is it, what does a benchmark say.

    python -m finetune_trainer test-functions --adapter DIRECTORY     four questions about two functions
    python -m finetune_trainer benchmark --adapter DIRECTORY          time to first token, tokens a second, memory
    python -m finetune_trainer bfcl --adapter DIRECTORY               Berkeley Function Calling Leaderboard, by syntax

`command` reads the arguments, `model` finds and loads base and adapter; `functions`, `speed` and `bfcl` are the three,
`bfcl_answers` judges by the leaderboard's rules.
"""

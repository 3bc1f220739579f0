"""The errors of the operator; each message is for the person who has to act on it."""


class InvalidJob(Exception):  # noqa: N818 - named after the condition reason that it becomes
    """A FineTuneJob that cannot be carried out as it is written.

    `problems` has a line for each thing that is wrong: its field path in the manifest, and what to do about it.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class InvalidSettings(Exception):  # noqa: N818
    """Environment variables that the operator cannot start with; the message names all of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)

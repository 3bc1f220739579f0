"""The errors of the operator; each message is for the person who has to act on it."""


class InvalidJob(Exception):
    """A FineTuneJob that cannot be carried out as it is written.

    `problems` has a line for each thing that is wrong: its field path in the manifest, and what to do about it.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class InvalidSettings(Exception):
    """Environment variables that the operator cannot start with; the message names all of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class ApiError(Exception):
    """A request that the API server did not grant; the message says which, why, and what to do where that is known."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, or None when no answer came."""

    @property
    def is_refusal(self) -> bool:
        """Whether the same request will be refused again: a quota, a policy, a missing permission, a bad value.

        A webhook that does not answer counts as well: somebody has to be told that a part of the cluster is down.
        """
        return self.status in {400, 403, 422} or (self.status == 500 and "failed calling webhook" in str(self))


class ForeignObject(Exception):
    """An object that a job needs is there and belongs to somebody else; it was not touched."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name} belongs to somebody else")
        self.kind = kind
        self.name = name


class DefinitionMissing(Exception):
    """The cluster does not know a kind, or no longer: its CustomResourceDefinition is not installed."""

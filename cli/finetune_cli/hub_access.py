"""Whether a repository of the Hub may be read."""

from enum import StrEnum


class Access(StrEnum):
    """What the Hub answered to somebody without a token."""

    OPEN = "open"
    REFUSED = "refused"
    """It is gated, private or not there: the Hub does not say which."""
    UNKNOWN = "unknown"
    """The Hub cannot be reached from here."""

"""Which rows are trained on, how often, and which are held out to be scored: decided by a row's own words alone.

A row that is held out of one job is held out of every job with the same share, in whatever order the rows come,
whichever other data sets there are, and however often it is repeated.
"""

import hashlib
import json

from finetune_trainer.data.conversation import Conversation

_RANGE = 1 << 64


def fingerprint(conversation: Conversation) -> int:
    """Return 64 bits of the SHA-256 of a conversation's turns: equal for equal turns, in whatever format and file.

    The tools do not count: a row that was repeated with its tools in another order must not be scored when its twin
    was trained on.
    """
    turns = [
        {
            "role": message.role,
            "content": message.content,
            "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls],
        }
        for message in conversation.messages
    ]
    text = json.dumps(turns, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big")


def is_held_out(fingerprint: int, share: float) -> bool:
    """Whether the row of a fingerprint is among the share (0 to 1) that is never trained on."""
    return fingerprint < share * _RANGE


def num_repetitions(fingerprint: int, weight: float) -> int:
    """Return how often a row of a data set of this weight is trained on in an epoch.

    The whole part of the weight, and once more for as many rows as its fraction says: of weight 2.5 every row twice,
    half of them a third time. Which half is decided by other bits than those that decide what is held out.
    """
    whole = int(weight)
    mixed = hashlib.sha256(b"weight" + fingerprint.to_bytes(8, "big")).digest()
    return whole + (int.from_bytes(mixed[:8], "big") < (weight - whole) * _RANGE)

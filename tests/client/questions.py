"""The name that an outbox has for a request's question."""

from fedprofile.client.outbox import question_key
from fedprofile.common.adapters import arrays_hash
from fedprofile.common.messages import Request


def key_of(request: Request) -> str:
    """What a reply to a request is kept under."""
    return question_key(request.card_hash, request.kind.value, request.round, arrays_hash(request.arrays))

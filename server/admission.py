"""What is checked of every reply before it counts.

A reply is admitted when it is from a tenant that was asked, of the message schema, for this card, round and kind, and
its arrays have exactly the expected names, shapes and dtypes, are finite, and are within the card's norm bound. A
reply that is not is dropped and named, and the round goes on without it. What a reply could say about its own weight
has no place in the schema.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from fedprofile.common.errors import RefusalCode
from fedprofile.common.messages import TABLE, Arrays, Kind, MessageError, Reply, refusal_of, reply_of
from fedprofile.server.aggregation import Shapes

NORM_TOLERANCE = 1e-5
"""Relative; a tenant scales to the bound in single precision."""

LARGEST_CELL = 10.0
"""A cell of an evaluation table may hold this many times the declared users, and as many noise deviations twice."""

NOT_ASKED = "was not asked"
"""Why a reply is dropped that is from none of those asked."""

_FIRST_REFUSAL = 1000


@dataclass(frozen=True)
class Member:
    """A tenant as a round sees it.

    Args:
        name: As on the roster.
        declared_users: From enrolment; what the tenant weighs before the cap.
        evaluation_noise: Standard deviation of one cell of its evaluation tables.
    """

    name: str
    declared_users: int
    evaluation_noise: float


@dataclass(frozen=True)
class Admitted:
    """A reply that counts."""

    member: Member
    reply: Reply


@dataclass(frozen=True)
class Refused:
    """The tenant declined, with one of the codes of the schema."""

    member: Member
    code: RefusalCode


@dataclass(frozen=True)
class Dropped:
    """A reply that does not count."""

    name: str
    reason: str


Verdict = Admitted | Refused | Dropped


class Admission:
    """The checks of one round; see the module's docstring.

    Args:
        card_hash: Of the federation.
        shapes: Name -> shape of the adapter's arrays, all float32.
        max_update_norm: L2 norm of the largest update.
        table_shape: Of an evaluation table.
        kind: What was asked for.
        round_number: For which round.
        asked: Node id -> tenant, everybody who was asked.
    """

    def __init__(
        self,
        *,
        card_hash: str,
        shapes: Shapes,
        max_update_norm: float,
        table_shape: tuple[int, ...],
        kind: Kind,
        round_number: int,
        asked: Mapping[int, Member],
    ) -> None:
        self._card_hash, self._shapes, self._table_shape = card_hash, shapes, table_shape
        self._largest_norm = max_update_norm * (1 + NORM_TOLERANCE)
        self._kind, self._round = kind, round_number
        self._asked = dict(asked)
        self._heard: set[int] = set()

    @property
    def silent(self) -> list[Member]:
        """Who was asked and has not been heard of."""
        return [member for node_id, member in self._asked.items() if node_id not in self._heard]

    def judge(self, message: Message) -> Verdict:
        """Decide on one reply.

        Args:
            message: As the grid gave it; its sender is the one whose key signed it.

        Returns:
            What becomes of it.
        """
        node_id = message.metadata.src_node_id
        member = self._asked.get(node_id)
        if member is None:
            return Dropped(f"node {node_id}", NOT_ASKED)
        if node_id in self._heard:
            return Dropped(member.name, "answered twice")
        self._heard.add(node_id)
        if message.has_error():
            if message.error.code >= _FIRST_REFUSAL:
                return Refused(member, refusal_of(message))
            return Dropped(member.name, "left" if message.error.reason == "left" else "reply lost or malformed")
        try:
            reply = reply_of(message)
        except MessageError as error:
            return Dropped(member.name, str(error))
        return self._check(member, reply)

    def _check(self, member: Member, reply: Reply) -> Verdict:
        if reply.kind is not self._kind:
            return Dropped(member.name, f"kind is not {self._kind.value}")
        if reply.card_hash != self._card_hash:
            return Dropped(member.name, "reply is for another card")
        if reply.round != self._round:
            return Dropped(member.name, f"reply is for round {reply.round}")
        problem = {Kind.TRAIN: self._update_problem, Kind.EVALUATE: self._table_problem}.get(
            self._kind, self._extra_problem
        )(reply.arrays, member)
        return Dropped(member.name, problem) if problem else Admitted(member, reply)

    def _update_problem(self, arrays: Arrays, member: Member) -> str | None:
        if set(arrays) != set(self._shapes):
            return "names are not the adapter's"
        squares = 0.0
        for name, value in arrays.items():
            if value.dtype != np.float32:
                return f"dtype of '{name}' is not float32"
            if value.shape != tuple(self._shapes[name]):
                return f"shape of '{name}' is not {list(self._shapes[name])}"
            flat = value.ravel().astype(np.float64)
            squares += float(flat @ flat)
        if not math.isfinite(squares):
            return "update is not finite"
        if math.sqrt(squares) > self._largest_norm:
            return f"norm {math.sqrt(squares):.4g} is above max_update_norm"
        return None

    def _table_problem(self, arrays: Arrays, member: Member) -> str | None:
        if set(arrays) != {TABLE}:
            return "names are not the table's"
        table = arrays[TABLE]
        if table.dtype != np.float64 or table.shape != self._table_shape:
            return f"table is not float64 of shape {list(self._table_shape)}"
        if not np.isfinite(table).all():
            return "table is not finite"
        if float(np.abs(table).max(initial=0.0)) > LARGEST_CELL * (member.declared_users + 2 * member.evaluation_noise):
            return "a cell is beyond what the declared users can fill"
        return None

    def _extra_problem(self, arrays: Arrays, member: Member) -> str | None:
        return "arrays where none belong" if arrays else None

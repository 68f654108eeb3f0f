"""The one place where a request becomes a reply, in deployment and in simulations alike.

The order is the guarantee: card and policy, the received arrays, the ledger's mark, the outbox (a question that was
answered before costs nothing), the segment's cap (so that no refusal by budget depends on data), then the source and
the self-test (they may fail, and nothing is spent yet), then the reservation, and only then randomness. What is drawn
is put into the outbox before it is sent, and its hash is noted in the ledger. Whatever fails because of data, code or
hardware is one constant code to the server; the tenant's own log names the exception's type.

What comes out of the outbox must fit the question, its entry and the hash that was noted; a file that does not is never
sent. Where nothing of the question was released yet, such a file counts as none, as after a crash, and the question is
paid for and drawn anew. Where something was, it does not: the same question would get other bytes, and cost again, and
nobody would know. Then it is not answered until a person has restored the file, or deleted it, which asks for another
draw.

`begin` and `finish` are the two halves of that order, before and after the drawing, so that a simulation can draw for
many tenants at once; a tenant's own client always goes through `answer`.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_schema import Segment
from fedprofile.client.outbox import question_key
from fedprofile.client.policy import Policy
from fedprofile.client.randomness import Randomness
from fedprofile.client.sampling import TenantRecords
from fedprofile.common.adapters import AdapterError, Layout, arrays_hash, check_arrays
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import RefusalCode, RefusalError, ReleaseError
from fedprofile.common.evaluation_tables import table_shape
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import (
    TABLE,
    Arrays,
    Kind,
    LedgerMark,
    Reply,
    Request,
    refusal_message,
    reply_message,
    request_of,
)

_log = logging.getLogger(__name__)


class Trainer(Protocol):
    """What answers `train`; see `fedprofile.client.training.PrivateTrainer`."""

    def self_test(self) -> None:
        """Raise unless gradients reach every trainable; on synthetic tokens."""
        ...

    def train(
        self,
        arrays: Arrays,
        records: EncodedRecords,
        *,
        steps: int,
        randomness: Randomness,
        round_number: int = 1,
    ) -> Arrays:
        """The noised update."""
        ...


class Evaluator(Protocol):
    """What answers `evaluate`; see `fedprofile.client.evaluation.PrivateEvaluator`."""

    def evaluate(self, arrays: Arrays, records: EncodedRecords, randomness: Randomness) -> Arrays:
        """The noised table."""
        ...


@dataclass(frozen=True)
class Reserved:
    """A request that is paid for and not yet answered.

    Args:
        request: As decoded.
        key: Of the question, in the outbox.
        records: Of the users that it is about.
        mark: The ledger's, with the reservation.
        randomness: Made for it alone.
    """

    request: Request
    key: str
    records: EncodedRecords = field(repr=False)
    mark: LedgerMark
    randomness: Randomness = field(repr=False)


class Replies(Protocol):
    """Finished replies by question; see `fedprofile.client.outbox.Outbox`."""

    def get(self, key: str) -> Reply | None:
        """The finished reply to a question."""
        ...

    def holds(self, key: str) -> bool:
        """Whether anything is kept for a question, be it whole or not."""
        ...

    def put(self, key: str, reply: Reply) -> None:
        """Keep a finished reply."""
        ...


class TenantApp:
    """Answers requests for one tenant in one federation.

    Args:
        card: What the tenant agreed to.
        layout: Names, shapes and dtypes of the adapter.
        trainer: Answers `train`.
        evaluator: Answers `evaluate`.
        records: Reads the source, anew each time it is called.
        ledger: Of the population; open.
        segment: Of this run.
        outbox: Finished replies.
        policy: The tenant's bounds.
        make_randomness: Makes a fresh source for each reservation.
        on_adapter: Takes a delivered adapter and its round.
    """

    def __init__(
        self,
        *,
        card: FederationCard,
        layout: Layout,
        trainer: Trainer,
        evaluator: Evaluator,
        records: Callable[[], TenantRecords],
        ledger: Ledger,
        segment: Segment,
        outbox: Replies,
        policy: Policy,
        make_randomness: Callable[[], Randomness],
        on_adapter: Callable[[Arrays, int], None],
    ) -> None:
        self._card = card
        self._layout = layout
        self._trainer = trainer
        self._evaluator = evaluator
        self._records = records
        self._ledger = ledger
        self._segment = segment
        self._outbox = outbox
        self._policy = policy
        self._make_randomness = make_randomness
        self._on_adapter = on_adapter
        self._tested = False
        self._serial = threading.Lock()

    def handle(self, request: Request) -> Reply:
        """Answer one request.

        Args:
            request: As decoded.

        Returns:
            The reply; for a question that was answered before, the same one, free of cost.

        Raises:
            PolicyRefusal: Card or policy do not allow it.
            AdapterError: The arrays are not an adapter of the card.
            LedgerBehindError: The server has seen more of the ledger than there is.
            ReleaseError: The stored reply is not what was released.
            BudgetRefusal: The run's share is spent.
        """
        with self._serial:
            begun = self.begin(request)
            return begun if isinstance(begun, Reply) else self.finish(begun, self._draw(begun))

    def begin(self, request: Request) -> Reply | Reserved:
        """All that comes before the drawing. Not for several threads.

        Args:
            request: As decoded.

        Returns:
            The reply where nothing is to be drawn, or what was reserved.

        Raises:
            PolicyRefusal, AdapterError, LedgerBehindError, ReleaseError, BudgetRefusal: See `handle`.
        """
        self._policy.check(request, self._card, _today())
        check_arrays(request.arrays, self._layout)
        self._ledger.check_mark(request.ledger)
        if request.kind is Kind.DELIVER:
            self._on_adapter(request.arrays, request.round)
            return Reply(request.kind, request.card_hash, request.round, {}, self._ledger.mark())
        question = arrays_hash(request.arrays)
        key = question_key(request.card_hash, request.kind.value, request.round, question)
        found = self._stored(request, key, question)
        if found is not None:
            return self._released(found)
        training = request.kind is Kind.TRAIN
        self._policy.check_rounds(request, self._ledger.rounds_on(_today()))
        self._ledger.check_cap(self._segment, request.kind, request.round)
        records = self._records()
        if not self._tested:
            self._trainer.self_test()
            self._tested = True
        users = records.training if training else records.evaluation
        entry = self._ledger.reserve(self._segment, request.kind, request.round, question)
        return Reserved(request, key, users, LedgerMark(entry.sequence, entry.head), self._make_randomness())

    def finish(self, reserved: Reserved, released: Arrays) -> Reply:
        """All that comes after the drawing. Not for several threads.

        Args:
            reserved: From `begin`.
            released: What was drawn for it.

        Returns:
            The reply, which is kept.
        """
        request = reserved.request
        reply = Reply(request.kind, request.card_hash, request.round, released, reserved.mark)
        self._outbox.put(reserved.key, reply)
        return self._released(reply)

    def answer(self, message: Message) -> Message:
        """Answer one Flower message.

        Args:
            message: From the server.

        Returns:
            The reply or a refusal's code. Never raises because of a request or of data.
        """
        try:
            return reply_message(self.handle(request_of(message)), message)
        except Exception as error:
            return self.refuse(error, message)

    def refuse(self, error: Exception, message: Message) -> Message:
        """What the server is told of an error: a code.

        Args:
            error: Why a request is not answered.
            message: The request.

        Returns:
            The refusal; it is counted.
        """
        if isinstance(error, RefusalError):
            code = error.code
            _log.warning("refused (%s): %s", code.value, error)
        elif isinstance(error, AdapterError):
            code = RefusalCode.ADAPTER
            _log.warning("refused (%s): %s", code.value, error)
        elif isinstance(error, ReleaseError):
            # Of the tenant's own files and of no data; the server need not know.
            code = RefusalCode.UNAVAILABLE
            _log.error("could not answer: %s", error)
        else:
            # The text may hold data; the type does not.
            code = RefusalCode.UNAVAILABLE
            _log.error("could not answer: %s", type(error).__name__)
        try:
            self._ledger.count_refusal(code)
        except Exception as failed:
            _log.error("could not count a refusal: %s", type(failed).__name__)
        return refusal_message(code, message)

    def _draw(self, reserved: Reserved) -> Arrays:
        request, records, randomness = reserved.request, reserved.records, reserved.randomness
        if request.kind is Kind.TRAIN:
            steps = self._segment.plan.local_steps
            return self._trainer.train(
                request.arrays, records, steps=steps, randomness=randomness, round_number=request.round
            )
        return self._evaluator.evaluate(request.arrays, records, randomness)

    def _stored(self, request: Request, key: str, question: str) -> Reply | None:
        """The finished reply to a request, None where it is to be drawn; see the module's text."""
        found = self._outbox.get(key)
        if found is not None and self._fits(found, request, question):
            return found
        if self._outbox.holds(key):
            if self._ledger.was_released(request.card_hash, request.kind, request.round, question):
                raise ReleaseError(
                    f"the outbox's {key}.safetensors, a reply that was released before, is damaged or another one; "
                    "restore it. Where it is lost, delete it: the question is then answered, and paid for, anew."
                )
            _log.warning("the outbox's %s.safetensors is no reply to its question; it is drawn anew.", key)
        return None

    def _fits(self, reply: Reply, request: Request, question: str) -> bool:
        """Whether a stored reply can be the one to a request."""
        if (reply.kind, reply.card_hash, reply.round) != (request.kind, request.card_hash, request.round):
            return False
        table: Layout = {TABLE: (table_shape(self._card.task), "float64")}
        layout = self._layout if request.kind is Kind.TRAIN else table
        if {name: (value.shape, str(value.dtype)) for name, value in reply.arrays.items()} != layout:
            return False
        return self._ledger.answers(reply.ledger, request.card_hash, request.kind, request.round, question)

    def _released(self, reply: Reply) -> Reply:
        self._ledger.mark_released(reply.ledger, arrays_hash(reply.arrays))
        return reply


def client_app(answer: Callable[[Message, Context], Message]) -> ClientApp:
    """The same logic as a Flower app, for Flower's own simulation engine.

    Args:
        answer: `TenantApp.answer` of whichever tenant the context is of.

    Returns:
        An app that answers train, evaluate and query.deliver.
    """
    app = ClientApp()
    app.train()(answer)
    app.evaluate()(answer)
    app.query("deliver")(answer)
    return app


def _today() -> date:
    return datetime.now(UTC).date()

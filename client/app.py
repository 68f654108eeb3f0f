"""The one place where a request becomes a reply, in deployment and in simulations alike.

The order is the guarantee: card and policy, the received arrays, the ledger's mark, the outbox (a question that was
answered before costs nothing), the segment's cap (so that no refusal by budget depends on data), then the source and
the self-test (they may fail, and nothing is spent yet), then the reservation, and only then randomness. What is drawn
is put into the outbox before it is sent. Whatever fails because of data, code or hardware is one constant code to the
server; the tenant's own log names the exception's type.
"""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_schema import Segment
from fedprofile.client.outbox import Outbox, key_of
from fedprofile.client.policy import Policy
from fedprofile.client.randomness import Randomness
from fedprofile.client.sampling import TenantRecords
from fedprofile.common.adapters import AdapterError, Layout, arrays_hash, check_arrays
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import RefusalCode, RefusalError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import (
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

    def train(self, arrays: Arrays, records: EncodedRecords, *, steps: int, randomness: Randomness) -> Arrays:
        """The noised update."""
        ...


class Evaluator(Protocol):
    """What answers `evaluate`; see `fedprofile.client.evaluation.PrivateEvaluator`."""

    def evaluate(self, arrays: Arrays, records: EncodedRecords, randomness: Randomness) -> Arrays:
        """The noised table."""
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
        outbox: Outbox,
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
            BudgetRefusal: The run's share is spent.
        """
        with self._serial:
            self._policy.check(request, self._card, _today())
            check_arrays(request.arrays, self._layout)
            self._ledger.check_mark(request.ledger)
            if request.kind is Kind.DELIVER:
                self._on_adapter(request.arrays, request.round)
                return Reply(request.kind, request.card_hash, request.round, {}, self._ledger.mark())
            key = key_of(request)
            reply = self._outbox.get(key) or self._drawn(request, key)
            self._ledger.mark_released(reply.ledger, arrays_hash(reply.arrays))
            return reply

    def answer(self, message: Message) -> Message:
        """Answer one Flower message.

        Args:
            message: From the server.

        Returns:
            The reply or a refusal's code. Never raises because of a request or of data.
        """
        try:
            return reply_message(self.handle(request_of(message)), message)
        except RefusalError as refusal:
            code = refusal.code
            _log.warning("refused (%s): %s", code.value, refusal)
        except AdapterError as error:
            code = RefusalCode.ADAPTER
            _log.warning("refused (%s): %s", code.value, error)
        except Exception as error:
            # The text may hold data; the type does not.
            code = RefusalCode.UNAVAILABLE
            _log.error("could not answer: %s", type(error).__name__)
        try:
            self._ledger.count_refusal(code)
        except Exception as error:
            _log.error("could not count a refusal: %s", type(error).__name__)
        return refusal_message(code, message)

    def _drawn(self, request: Request, key: str) -> Reply:
        training = request.kind is Kind.TRAIN
        self._policy.check_rounds(request, self._ledger.rounds_on(_today()))
        self._ledger.check_cap(self._segment, request.kind, request.round)
        records = self._records()
        if not self._tested:
            self._trainer.self_test()
            self._tested = True
        users = records.training if training else records.evaluation
        entry = self._ledger.reserve(self._segment, request.kind, request.round, arrays_hash(request.arrays))
        randomness = self._make_randomness()
        if training:
            steps = self._segment.plan.local_steps
            released = self._trainer.train(request.arrays, users, steps=steps, randomness=randomness)
        else:
            released = self._evaluator.evaluate(request.arrays, users, randomness)
        mark = LedgerMark(entry.sequence, entry.head)
        reply = Reply(request.kind, request.card_hash, request.round, released, mark)
        self._outbox.put(key, reply)
        return reply


def client_app(tenant_app: TenantApp) -> ClientApp:
    """The same logic as a Flower app, for a grid that runs in process.

    Args:
        tenant_app: Of one tenant.

    Returns:
        An app that answers train, evaluate and query.deliver.
    """

    def answer(message: Message, context: Context) -> Message:
        return tenant_app.answer(message)

    app = ClientApp()
    app.train()(answer)
    app.evaluate()(answer)
    app.query("deliver")(answer)
    return app


def _today() -> date:
    return datetime.now(UTC).date()

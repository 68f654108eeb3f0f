"""A finished reply that outlived its ledger: it is not sent, nothing else is, and the tenant is told why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from fedprofile.client.app import TenantApp
from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.ledger import Ledger
from fedprofile.client.outbox import Outbox
from fedprofile.client.policy import Policy
from fedprofile.client.randomness import Randomness, SecureRandomness
from fedprofile.client.sampling import TenantRecords
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import LedgerBehindError, RefusalCode
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays, Kind, LedgerMark, Request, content_of, refusal_of, reply_of


class Noise:
    """A trainer that gives nothing but noise."""

    def self_test(self) -> None:
        """Nothing can fail."""

    def train(
        self, arrays: Arrays, records: EncodedRecords, *, steps: int, randomness: Randomness, round_number: int = 1
    ) -> Arrays:
        """Noise."""
        return {"w": randomness.gaussian(4).astype(np.float32)}


def _records() -> EncodedRecords:
    return EncodedRecords(
        users=("u1",),
        user=np.zeros(1, np.int64),
        tokens=[np.ones(1, np.int32)],
        features=np.ones((1, 4), np.float32),
        labels=np.zeros(1, np.int64),
        groups=np.zeros(1, np.int64),
    )


def _app(folder: Path, card: FederationCard, ledger: Ledger) -> TenantApp:
    plan = SegmentPlan(card.hash, 3.0, 1e-6, 0.1, 2.0, 1.0, 4, 10, 50, 5.0, 2)
    return TenantApp(
        card=card,
        layout={"w": ((4,), "float32")},
        trainer=Noise(),
        evaluator=PrivateEvaluator.of(card, plan, predict=lambda arrays, records: np.full((len(records), 2), 0.5)),
        records=lambda: TenantRecords(training=_records(), evaluation=_records()),
        ledger=ledger,
        segment=ledger.open_segment(plan),
        outbox=Outbox(folder / "outbox"),
        policy=Policy(frozenset({"train"}), 100),
        make_randomness=SecureRandomness,
        on_adapter=lambda arrays, number: None,
    )


def _asked(card: FederationCard, number: int) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    request = Request(Kind.TRAIN, card.hash, number, {"w": np.arange(4, dtype=np.float32)})
    message = Message(content_of(request), dst_node_id=5, message_type="train")
    message.metadata.__dict__["_message_id"] = f"message-{number}"
    return message


def _open(path: Path) -> Ledger:
    return Ledger.open(path, population="shop", user_column="user", epsilon=3.0, delta=1e-6, evaluation_users=0.2)


@pytest.mark.parametrize("continued", [False, True])
def test_a_reply_whose_entry_is_lost_is_not_sent(
    tmp_path: Path, card_data: Callable[..., dict[str, Any]], continued: bool
) -> None:
    card = FederationCard.model_validate(card_data(training={"rounds": 5, "local_steps": 10}))
    path, backup = tmp_path / "shop.sqlite", tmp_path / "backup"
    with _open(path) as ledger:
        _app(tmp_path, card, ledger)
    shutil.copy(path, backup)
    with _open(path) as ledger:
        first = reply_of(_app(tmp_path, card, ledger).answer(_asked(card, 1)))
    shutil.copy(backup, path)
    with _open(path) as ledger:
        app = _app(tmp_path, card, ledger)
        if continued:
            # Another entry has the lost one's number by now.
            assert reply_of(app.answer(_asked(card, 2))).ledger.sequence == first.ledger.sequence
        before = ledger.mark()
        for number in (1, 3):
            answer = app.answer(_asked(card, number))
            assert answer.has_error() and refusal_of(answer) is RefusalCode.LEDGER
        assert ledger.mark() == before
        # What `start` asks after such a refusal ends it, with the sentence.
        with pytest.raises(LedgerBehindError, match=r"a finished reply has entry 1 .*write-off"):
            ledger.check_mark(LedgerMark())
        ledger.write_off()
        again = reply_of(app.answer(_asked(card, 1)))
        assert again.ledger == first.ledger and again.arrays["w"].tobytes() == first.arrays["w"].tobytes()
        assert ledger.mark().sequence > first.ledger.sequence, "what was lost is counted, and the same bytes are free"

"""`flower-client worth`: was the federation worth it, on the tenant's own evaluation users and on its own screen?

Four ways to decide about a user are judged on people whom none of them was trained on:

    no model                 what is most frequent among the training users
    own data                 a logistic regression on the frozen text and the columns of this tenant's training users,
                             without noise, since it need not leave
    columns with DP          a regression on the same users' columns alone, trained with this run's noise
    the federation           the newest adapter

Why it is private: nothing of it is sent or stored, the ledger is only read, and what is trained here without noise ends
with the process. What is printed is exact and covered by no epsilon, so it is for the tenant alone, and says so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedprofile.client.agreement import read_agreed
from fedprofile.client.directory import SegmentFile, TenantDirectory
from fedprofile.client.ledger_summary import summary
from fedprofile.client.randomness import SecureRandomness
from fedprofile.client.received import AdapterFolder
from fedprofile.client.sampling import TenantRecords, is_evaluation_user, split_records
from fedprofile.client.sources import read_examples
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.common.candidates import encode_records
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.estimates import Interval
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tasks import BinaryTask, Labels, LabelsTask, MulticlassTask
from fedprofile.common.tenant import TenantFile

FEWEST_USERS = 20
"""Evaluation users, and training users, below which nothing can be said."""
RESAMPLES = 1000
FOLDS = 5
NO_TEXT = 1e-9
"""A text scale at which the text has no part in a prediction or a gradient."""

NO_MODEL, OWN_DATA, COLUMNS, FEDERATION = "no model", "own data", "columns with DP", "the federation"

Scores = NDArray[np.float64]
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Worth:
    """What each way came to.

    Args:
        measure: "AUC" or "accuracy"; intervals are 95 % bootstrap intervals over users.
        users: Evaluation users.
        round: After which round the adapter is.
        ways: The measure of each way that could be tried.
        gains: The federation minus each other way, over the same resamples.
    """

    measure: str
    users: int
    round: int
    ways: dict[str, Interval]
    gains: dict[str, Interval]

    @property
    def advice(self) -> str:
        """What to use, in a sentence."""
        others = {name: gain for name, gain in self.gains.items() if name != NO_MODEL}
        better = [name for name, gain in others.items() if gain.low > 0]
        best = max(others, key=lambda name: self.ways[name].value)
        if len(better) == len(others) and self.gains[NO_MODEL].low > 0:
            return f"Use the federation's adapter: it is better than {best} by {_signed(others[best])}."
        if self.ways[best].low <= self.ways[NO_MODEL].value and self.gains[NO_MODEL].low <= 0:
            return "Use none of them: no way is better than no model on these users."
        if others[best].high < 0:
            return f"Use {best}: the federation is worse by {(-others[best].value):.3f}."
        return (
            f"Use {best}: on these {self.users} users no difference to the federation is seen "
            f"({_signed(others[best])}), and it is simpler."
        )

    def as_text(self) -> str:
        """For a person."""
        lines = [f"{self.measure} on {self.users} evaluation users, 95 % intervals; adapter after round {self.round}:"]
        for name, estimate in self.ways.items():
            gain = f"   the federation is {_signed(self.gains[name])} from it" if name in self.gains else ""
            lines.append(f"  {name:16}  {estimate}{gain}")
        lines.append(self.advice)
        lines.append("These figures are exact and covered by no epsilon: they are yours and not to be passed on.")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "measure": self.measure,
            "users": self.users,
            "round": self.round,
            "ways": {name: vars(estimate) for name, estimate in self.ways.items()},
            "federation_minus": {name: vars(estimate) for name, estimate in self.gains.items()},
            "advice": self.advice,
        }


def find_worth(directory: TenantDirectory) -> Worth:
    """Judge the four ways.

    Args:
        directory: The tenant's, which has joined and was sent an adapter.

    Returns:
        What each came to.

    Raises:
        ConfigError: No adapter has come yet, the base or the ledger cannot be used, the task is of another kind, or
            there are too few users to say anything.
        DataError: The source cannot be read, or rows are wrong.
    """
    tenant, (card, segment) = directory.read_tenant_file(), read_agreed(directory)
    task = card.task
    if not isinstance(task, BinaryTask | MulticlassTask):
        raise ConfigError(f"worth: compares for binary and multiclass tasks; this card's is {task.kind}.")
    adapters = AdapterFolder(directory, card.hash)
    adapters.require()
    base, tokenizer = load_base(resolve_base(card.base, directory.root / tenant.base.path if tenant.base else None))
    records = _split(
        directory, tenant, card, segment, encode_records(read_examples(tenant, card, directory.root), card, tokenizer)
    )
    model = ProfileModel(card, base, tokenizer)
    number, arrays = adapters.newest(model.layout())
    model.set_arrays(arrays)
    plain = ProfileModel(_columns_alone(card), base, tokenizer)
    cache = PrefixCache(plain)
    for part in (records.training, records.evaluation):
        cache.fill(part.tokens)
    scores = {
        NO_MODEL: _most_frequent(records, task),
        OWN_DATA: _own_regression(records, cache, task),
        FEDERATION: model.predict(records.evaluation),
    }
    if card.features.width:
        scores[COLUMNS] = _private_columns(plain, cache, records, segment)
    return judge(records.evaluation, scores, task, number)


def judge(records: EncodedRecords, scores: dict[str, Scores], task: LabelsTask, number: int) -> Worth:
    """Measure some ways on the same users.

    Args:
        records: Of the evaluation users.
        scores: Of each way, [n, labels].
        task: The card's.
        number: After which round the adapter is.

    Returns:
        Each way's measure, and how far the federation is above it. Every user weighs the same, however many records
        there are of one, and users are resampled with all of theirs.
    """
    counts = np.bincount(records.user, minlength=len(records.users))
    weights = 1.0 / counts[records.user]
    draws = SecureRandomness().uniform(RESAMPLES * len(records.users)).reshape(RESAMPLES, -1)
    # Bayesian bootstrap (Rubin 1981): no resample is without a label that is there.
    shares = -np.log1p(-draws)[:, records.user] * weights
    measure = _auc if task.kind == "binary" else _accuracy
    values = {name: measure(each, records.labels, weights) for name, each in scores.items()}
    resampled = {
        name: np.array([measure(each, records.labels, share) for share in shares]) for name, each in scores.items()
    }
    ordered = [name for name in (NO_MODEL, OWN_DATA, COLUMNS, FEDERATION) if name in scores]
    return Worth(
        measure="AUC" if task.kind == "binary" else "accuracy",
        users=len(records.users),
        round=number,
        ways={name: _interval(values[name], resampled[name]) for name in ordered},
        gains={
            name: _interval(values[FEDERATION] - values[name], resampled[FEDERATION] - resampled[name])
            for name in ordered
            if name != FEDERATION
        },
    )


def _split(
    directory: TenantDirectory, tenant: TenantFile, card: FederationCard, segment: SegmentFile, records: EncodedRecords
) -> TenantRecords:
    population = summary(directory.ledger_path(segment.ledger)).stored.population
    found = split_records(records, lambda user: is_evaluation_user(user, population.key, population.evaluation_users))
    for name, part in (("training", found.training), ("evaluation", found.evaluation)):
        if len(part.users) < FEWEST_USERS:
            raise ConfigError(
                f"worth: there are {len(part.users)} {name} users with a label; fewer than {FEWEST_USERS} say nothing."
            )
        if len(np.unique(part.labels)) < 2:
            raise ConfigError(f"worth: all {name} users have the same label; there is nothing to tell apart.")
    return found


def _columns_alone(card: FederationCard) -> FederationCard:
    """The card of a regression on the columns: the head alone, and text that weighs nothing."""
    adapter = card.adapter.model_copy(update={"method": "head", "text_scale": NO_TEXT, "label_head": 0.0})
    training = card.training.model_copy(update={"views": 1, "adversarial": 0.0, "head_clip": None})
    return card.model_copy(update={"adapter": adapter, "training": training})


def _most_frequent(records: TenantRecords, task: LabelsTask) -> Scores:
    shares = np.bincount(records.training.labels, minlength=len(task.labels)) / len(records.training)
    return np.tile(shares, (len(records.evaluation), 1))


def _own_regression(records: TenantRecords, cache: PrefixCache, task: LabelsTask) -> Scores:
    inputs = [np.hstack([_texts(part, cache), part.features]) for part in (records.training, records.evaluation)]
    training = records.training
    model = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": np.logspace(-4, 1, 6)},
        scoring="roc_auc" if task.kind == "binary" else "accuracy",
        cv=list(StratifiedGroupKFold(FOLDS).split(inputs[0], training.labels, training.user)),
        # Of a fold in which a label is missing.
        error_score=0.0,
    )
    model.fit(inputs[0], training.labels)
    scores = np.zeros((len(records.evaluation), len(task.labels)))
    scores[:, model.classes_] = model.predict_proba(inputs[1])
    return scores


def _texts(records: EncodedRecords, cache: PrefixCache) -> NDArray[np.float32]:
    """The frozen base's pooled text of each record."""
    return cache.get(records.tokens, 1).numpy()


def _private_columns(model: ProfileModel, cache: PrefixCache, records: TenantRecords, segment: SegmentFile) -> Scores:
    """As many rounds and steps as the run has, with its noise."""
    card = model.card
    settings = TrainingSettings.of(card, segment.plan, segment.declared_users)
    trainer = PrivateTrainer(model=model, cache=cache, settings=settings)
    arrays = model.initial_arrays()
    for number in range(1, card.training.rounds + 1):
        update = trainer.train(
            arrays,
            records.training,
            steps=card.training.local_steps,
            randomness=SecureRandomness(),
            round_number=number,
        )
        arrays = {name: value + update[name] for name, value in arrays.items()}
    model.set_arrays(arrays)
    return model.predict(records.evaluation, cache)


def _auc(scores: Scores, labels: Labels, weights: Weights) -> float:
    return float(roc_auc_score(labels, scores[:, 1], sample_weight=weights))


def _accuracy(scores: Scores, labels: Labels, weights: Weights) -> float:
    return float(accuracy_score(labels, scores.argmax(axis=1), sample_weight=weights))


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def _signed(gain: Interval) -> str:
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"

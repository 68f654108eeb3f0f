"""Is a new adapter worse for this tenant's own users than the one in use?

With `[adapters] accept = "not-worse"` an adapter that came is not used before it was judged. It is compared with the
one in use (the first one with the untrained start) on the evaluation users, who are never trained on: each user's mean
loss under either, the mean of the differences, and its 95 % interval. It is worse where all of that is above zero.

Why this costs no privacy: the judgement is exact and stays here. It is made when a person asks for it or when the run
is over, never between a request and its reply, and nothing that answers reads it (`fedprofile.client.received`); the
server is told neither the result nor that there was one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.agreement import read_agreed
from fedprofile.client.directory import AdapterVersion, TenantDirectory
from fedprofile.client.ledger_summary import summary
from fedprofile.client.received import AdapterFolder
from fedprofile.client.sampling import is_evaluation_user, split_records
from fedprofile.client.site import load_model
from fedprofile.client.sources import read_examples
from fedprofile.common.candidates import encode_records
from fedprofile.common.estimates import NORMAL_95
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.tasks import MultilabelTask, RankingTask, RegressionTask, TaskSpec

FEWEST_USERS = 20
"""With fewer evaluation users nothing can be said, and an adapter is taken."""
LEAST_LIKELY = 1e-12
"""No probability counts as less, so that no loss is infinite."""
CACHE_BYTES = 2**30
"""Of the base's activations, which are the same for all adapters."""


@dataclass(frozen=True)
class Verdict:
    """On one adapter.

    Args:
        version: Which.
        against: After which round the adapter was that it was compared with; 0 is the untrained start.
        users: Evaluation users.
        difference: Mean loss of the new one minus that of the other; None for too few users.
        half_width: Of the 95 % interval.
    """

    version: AdapterVersion
    against: int
    users: int
    difference: float | None = None
    half_width: float = 0.0

    @property
    def worse(self) -> bool:
        """Whether it is flagged, and not used."""
        return self.difference is not None and self.difference - self.half_width > 0

    def __str__(self) -> str:
        name = f"the adapter after round {self.version.round}"
        if self.difference is None:
            return f"{name} is taken: {self.users} evaluation users are too few to judge it."
        other = "the untrained start" if self.against == 0 else f"the one after round {self.against}"
        low, high = self.difference - self.half_width, self.difference + self.half_width
        measured = f"mean loss {self.difference:+.4f} [{low:+.4f}, {high:+.4f}] from {other}, {self.users} users"
        return f"{name} is {'WORSE, and not used' if self.worse else 'taken'}: {measured}."


def judge_waiting(directory: TenantDirectory) -> Iterator[Verdict]:
    """Judge every adapter that waits, oldest first, and write each verdict down.

    Args:
        directory: The tenant's, which has joined.

    Yields:
        A verdict for each.

    Raises:
        ConfigError: The base, the ledger or a stored adapter cannot be used.
        DataError: The source cannot be read, or rows are wrong.
    """
    tenant, (card, segment) = directory.read_tenant_file(), read_agreed(directory)
    folder = AdapterFolder(directory, card.hash, tenant.adapters)
    waiting = [version for version in folder.versions() if version.state == "waiting"]
    if not waiting:
        return
    model, tokenizer = load_model(card, tenant, directory.root)
    population = summary(directory.ledger_path(segment.ledger)).stored.population
    records = split_records(
        encode_records(read_examples(tenant, card, directory.root), card, tokenizer),
        lambda user: is_evaluation_user(user, population.key, population.evaluation_users),
    ).evaluation

    cache = PrefixCache(model, limit=CACHE_BYTES)
    cache.fill(records.tokens)

    def losses(version: AdapterVersion | None) -> NDArray[np.float64]:
        model.set_arrays(model.initial_arrays() if version is None else folder.read(version, model.layout()))
        return user_losses(model.predict(records, cache), records, card.task)

    for version in waiting:
        used = folder.in_use()
        against, users = 0 if used is None else used.round, len(records.users)
        if users < FEWEST_USERS:
            verdict = Verdict(version, against, users)
        else:
            gaps = losses(version) - losses(used)
            half = NORMAL_95 * float(gaps.std(ddof=1)) / np.sqrt(users)
            verdict = Verdict(version, against, users, float(gaps.mean()), half)
        folder.mark(version, "worse" if verdict.worse else "taken")
        yield verdict


def user_losses(scores: NDArray[np.float64], records: EncodedRecords, task: TaskSpec) -> NDArray[np.float64]:
    """The mean loss of each user.

    Args:
        scores: [n, logits].
        records: n rows whose labels are known.
        task: The card's.

    Returns:
        [users]: cross entropy; of a regression the squared error, as a share of the range squared. A score that is not
        a number has the largest loss that there is: an adapter that gives none must not pass for want of a comparison.
    """
    labels, largest = records.labels, -np.log(LEAST_LIKELY)
    if isinstance(task, RegressionTask):
        losses, largest = (scores[:, 0] - labels) ** 2, 1.0
    else:
        likely = np.clip(scores, LEAST_LIKELY, 1 - LEAST_LIKELY)
        if isinstance(task, MultilabelTask | RankingTask):
            truth = task.truths(labels) if isinstance(task, MultilabelTask) else labels[:, None] == 1
            losses = -np.where(truth, np.log(likely), np.log1p(-likely)).mean(axis=1)
        else:
            losses = -np.log(likely[np.arange(len(labels)), labels])
    losses = np.nan_to_num(losses, nan=largest)
    counts = np.bincount(records.user, minlength=len(records.users))
    found: NDArray[np.float64] = np.bincount(records.user, losses, len(records.users)) / counts
    return found

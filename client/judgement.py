"""What becomes of a prediction at the tenant: it is given, left to a person, or answered in the tenant's own words.

All of it is local and by the tenant's own `[judgement]`; the federation and its server have no part in it. A person is
to decide where the model is not sure, and the review list gives that person what the model saw.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.tasks import BinaryTask, MulticlassTask
from fedprofile.common.tenant import JudgementSpec

REVIEW = "review"
"""The decision that a person takes."""


@dataclass(frozen=True)
class Judgement:
    """How predictions of one card are judged.

    Args:
        labels: The card's, in order.
        spec: The tenant's.
        replies: Label -> what is answered; empty where there are none.
        thresholds: Of each group, by its index, where the tenant has thresholds.
    """

    labels: tuple[str, ...]
    spec: JudgementSpec
    replies: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    thresholds: tuple[float, ...] = ()

    @classmethod
    def of(cls, spec: JudgementSpec, card: FederationCard, folder: Path) -> "Judgement":
        """Check the tenant's settings against the card.

        Args:
            spec: The tenant file's `[judgement]`.
            card: The agreed one.
            folder: What a relative path counts from.

        Returns:
            The judgement.

        Raises:
            ConfigError: The card has no labels to decide between, a band or thresholds are given for a card that has
                not two labels, thresholds are of no group of the card, a label is called "review", or the file of
                replies cannot be used.
        """
        task = card.task
        if not isinstance(task, BinaryTask | MulticlassTask):
            raise ConfigError(
                f"judgement: decides between labels, of binary and multiclass tasks; this card's task is {task.kind}."
            )
        if spec.band is not None and task.kind != "binary":
            raise ConfigError(
                f"judgement.band: is for binary tasks, and this card's is {task.kind}; use judgement.confidence."
            )
        if REVIEW in task.labels:
            raise ConfigError(f"judgement: the card has a label '{REVIEW}', which here means a person; leave it out.")
        replies = {} if spec.replies is None else _read_replies(folder / spec.replies, task.labels)
        return cls(task.labels, spec, replies, _thresholds(spec, task))

    def decisions(self, probabilities: NDArray[np.float64], groups: Sequence[int]) -> tuple[str, ...]:
        """A label for each record, or `REVIEW`.

        Args:
            probabilities: [n, labels].
            groups: Index of each record's group, the last for all that are not on the card, [n].
        """
        held = probabilities.max(axis=1) < self.spec.confidence
        if self.spec.band is not None:
            low, high = self.spec.band
            held |= (probabilities[:, 1] >= low) & (probabilities[:, 1] <= high)
        chosen = probabilities.argmax(axis=1)
        if self.thresholds:
            chosen = (probabilities[:, 1] >= np.array(self.thresholds)[np.asarray(groups)]).astype(np.int64)
        return tuple(REVIEW if hold else self.labels[label] for hold, label in zip(held, chosen, strict=True))

    def reply(self, decision: str) -> str:
        """What is answered; nothing where a person decides."""
        return self.replies.get(decision, "")


def review_list(
    decisions: Sequence[str],
    users: Sequence[str],
    probabilities: NDArray[np.float64],
    labels: Sequence[str],
    texts: Sequence[str],
    reasons: Sequence[str],
    *,
    json_lines: bool,
) -> str:
    """The records that a person is to look at.

    Args:
        decisions: Of all records.
        users: Of all records.
        probabilities: [n, labels].
        labels: The card's.
        texts: What the model saw of each record.
        reasons: The strongest parts of each record that is left to a person; see
            `fedprofile.client.explanation.because`.
        json_lines: JSON Lines instead of CSV.

    Returns:
        The file's text: the user, each label's probability, the reasons, and the history; the least sure first.
    """
    places = [place for place, decision in enumerate(decisions) if decision == REVIEW]
    places.sort(key=lambda place: float(probabilities[place].max()))
    rows = [
        {"user": users[place]}
        | {f"p({label})": round(float(value), 6) for label, value in zip(labels, probabilities[place], strict=True)}
        | {"because": reasons[place], "history": texts[place]}
        for place in places
    ]
    if json_lines:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(
        buffer, ["user", *(f"p({label})" for label in labels), "because", "history"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({name: _as_text(cell) for name, cell in row.items()} for row in rows)
    return buffer.getvalue()


def _as_text(cell: Any) -> Any:
    """A cell that a spreadsheet takes as text: histories are other people's words, and may look like a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") else cell


def _thresholds(spec: JudgementSpec, task: BinaryTask | MulticlassTask) -> tuple[float, ...]:
    if not spec.thresholds:
        return ()
    if not isinstance(task, BinaryTask) or task.group is None:
        raise ConfigError("judgement.thresholds: are for binary tasks with a group attribute, and this card's is none.")
    unknown = [name for name in spec.thresholds if name not in task.group.all_values]
    if unknown:
        raise ConfigError(
            f"judgement.thresholds: '{unknown[0]}' is not a value of the card's group '{task.group.attribute}': "
            f"{', '.join(task.group.all_values)}."
        )
    return tuple(spec.thresholds.get(name, 0.5) for name in task.group.all_values)


def _read_replies(path: Path, labels: Sequence[str]) -> dict[str, str]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise ConfigError(f"judgement.replies: {path} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise ConfigError(f"judgement.replies: {path} is not CSV with the columns label and reply.") from None
    if list(table.columns) != ["label", "reply"]:
        raise ConfigError(f"judgement.replies: {path} must have the columns label and reply, and no others.")
    unknown = [label for label in table["label"] if label not in labels]
    if unknown:
        raise ConfigError(f"judgement.replies: '{unknown[0]}' in {path} is not a label of the card.")
    if table["label"].duplicated().any():
        raise ConfigError(
            f"judgement.replies: {path} answers '{table['label'][table['label'].duplicated()].iloc[0]}' twice."
        )
    return dict(zip(table["label"], table["reply"], strict=True))

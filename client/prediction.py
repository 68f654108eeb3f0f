"""Predictions at the tenant, with the newest adapter that the server sent."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.directory import TenantDirectory
from fedprofile.client.judgement import REVIEW, Judgement, review_list
from fedprofile.client.output_files import refuse_own_file, require_new, write_new
from fedprofile.client.profiler import Profiler
from fedprofile.client.received import AdapterFolder
from fedprofile.client.sources import read_examples
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import history_pieces
from fedprofile.common.tasks import RegressionTask, TaskSpec
from fedprofile.common.tenant import FileSource, TenantFile

KINDS = get_args(FileSource.model_fields["kind"].annotation)
OUTPUTS = (".csv", ".jsonl", ".json")


@dataclass(frozen=True)
class Predictions:
    """What is predicted for some records.

    Args:
        round: After which round the adapter was.
        card_hash: Of the federation.
        task: The card's.
        users: One for each record, in the input's order.
        scores: [n, outputs]; see `fedprofile.common.modeling.head.scores`.
        texts: What the model saw of each record, before it was cut to the card's length.
        judgement: The tenant's; None gives every record's most likely label.
    """

    round: int
    card_hash: str
    task: TaskSpec
    users: tuple[str, ...]
    scores: NDArray[np.float64]
    texts: tuple[str, ...] = field(repr=False, default=())
    judgement: Judgement | None = None

    @property
    def decisions(self) -> tuple[str, ...]:
        """For each record what `[judgement]` makes of it: a label or `fedprofile.client.judgement.REVIEW`."""
        return () if self.judgement is None else self.judgement.decisions(self.scores)

    def as_rows(self) -> list[dict[str, Any]]:
        """One object a record; what `--json` prints a list of."""
        return [
            {"user": user, **self.predicted(row), **judged, "round": self.round}
            for user, row, judged in zip(self.users, self.scores, self._judged(), strict=True)
        ]

    def _judged(self) -> list[dict[str, str]]:
        """Of each record decision and reply, where the tenant judges and replies."""
        if self.judgement is None:
            return [{} for _ in self.users]
        judgement = self.judgement
        return [
            {"decision": decision} | ({"reply": judgement.reply(decision)} if judgement.replies else {})
            for decision in self.decisions
        ]

    def as_review(self, *, json_lines: bool) -> str:
        """The review list; see `fedprofile.client.judgement.review_list`."""
        return review_list(
            self.decisions, self.users, self.scores, self.task.outputs, self.texts, json_lines=json_lines
        )

    def as_csv(self) -> str:
        """A header, and one line a record."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        if isinstance(self.task, RegressionTask):
            writer.writerow(["user", self.task.target])
            writer.writerows([row["user"], f"{row[self.task.target]:.6g}"] for row in self.as_rows())
            return buffer.getvalue()
        judged = self._judged()
        names = list(judged[0]) if judged else []
        writer.writerow(["user", "label", *(f"p({label})" for label in self.task.outputs), *names])
        for row in self.as_rows():
            values = (f"{value:.6f}" for value in row["probabilities"].values())
            writer.writerow([row["user"], row["label"], *values, *(row[name] for name in names)])
        return buffer.getvalue()

    def predicted(self, row: NDArray[np.float64]) -> dict[str, Any]:
        """Of one record: the label and all probabilities, or the target in its own unit under its own name."""
        task = self.task
        if isinstance(task, RegressionTask):
            return {task.target: float(task.in_unit(row)[0])}
        return {
            "label": task.outputs[int(row.argmax())],
            "probabilities": {label: float(value) for label, value in zip(task.outputs, row, strict=True)},
        }


def predict_file(directory: TenantDirectory, card: FederationCard, tenant: TenantFile, path: Path) -> Predictions:
    """Predict for the rows of a file.

    The file has the columns of the tenant's source; the label is not needed. Where the card's history has events,
    they come from the tenant's own events.

    Args:
        directory: The tenant's.
        card: The agreed one.
        tenant: The tenant file; its columns count, and its events.
        path: CSV, JSON Lines or Parquet, by its ending.

    Returns:
        The predictions.

    Raises:
        ConfigError: The file's ending is not one of these, it cannot be read, no adapter has come yet, or the tenant
            file's `[judgement]` does not fit the card.
        DataError: Rows are wrong.
    """
    tenant = _over(tenant, card, path)
    AdapterFolder(directory, card.hash).require()
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"--input {path}: cannot be read ({error.strerror}); give a file with the rows to predict for."
        ) from error
    examples = read_examples(tenant, card, directory.root, labelled=False)
    profiler = Profiler.open(directory, card, tenant)
    users = tuple(example.user for example in examples)
    texts = tuple("".join(history_pieces(example, card.history)) for example in examples)
    scores = profiler.scores(examples)
    return Predictions(profiler.round, card.hash, card.task, users, scores, texts, profiler.judgement)


def check_output(path: Path, directory: TenantDirectory, tenant: TenantFile, option: str = "--output") -> None:
    """Refuse an output that cannot be written, before the seconds that predicting takes.

    Args:
        path: As a person typed it.
        directory: The tenant's.
        tenant: The tenant file.
        option: What it was typed for.

    Raises:
        ConfigError: The file's ending is not one of `write_predictions`, it is there already, or it is one that the
            client needs itself.
    """
    if path.suffix not in OUTPUTS:
        raise ConfigError(f"{option} {path}: give a name that ends in .csv or .jsonl.")
    refuse_own_file(
        path, option, directory, ledger=directory.ledger_path(directory.read_segment().ledger), tenant=tenant
    )
    require_new(path, option)


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write predictions to a new file, readable by its owner only: `.csv`, or JSON Lines for `.jsonl` and `.json`.

    Raises:
        ConfigError: It is there already, or cannot be written.
    """
    if path.suffix == ".csv":
        text = predictions.as_csv()
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions.as_rows())
    write_new(path, text.encode(), "--output")


def write_review(predictions: Predictions, path: Path) -> int:
    """Write the review list to a new file, readable by its owner only: `.csv`, or JSON Lines.

    Returns:
        How many records are in it.

    Raises:
        ConfigError: It is there already, or cannot be written.
    """
    write_new(path, predictions.as_review(json_lines=path.suffix != ".csv").encode(), "--review")
    return predictions.decisions.count(REVIEW)


def _over(tenant: TenantFile, card: FederationCard, path: Path) -> TenantFile:
    """The tenant file with another source of rows to predict for."""
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        raise ConfigError(f"--input {path}: give a file that ends in {', '.join(f'.{kind}' for kind in KINDS)}.")
    source = FileSource.model_validate({"kind": kind, "path": path.absolute()})
    events = (tenant.events or tenant.source) if card.history.event else None
    return tenant.model_copy(update={"source": source, "events": events})

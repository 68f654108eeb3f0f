"""Predictions at the tenant, with the newest adapter that the server sent."""

import csv
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.databases import sqlite_file
from fedprofile.client.decisions import DecisionLog
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.explanation import because, explain
from fedprofile.client.judgement import REVIEW, Judgement, review_list
from fedprofile.client.output_files import refuse_own_file, require_new, write_new
from fedprofile.client.profiler import Profiler
from fedprofile.client.received import AdapterFolder
from fedprofile.client.review_table import add_reviews
from fedprofile.client.sources import read_examples
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.interactions import Example, history_pieces
from fedprofile.common.tasks import LIKELY, MultilabelTask, RankingTask, RegressionTask, TaskSpec
from fedprofile.common.tenant import FileSource, TableSpec, TenantFile

KINDS = get_args(FileSource.model_fields["kind"].annotation)
OUTPUTS = (".csv", ".jsonl", ".json")
BEST = 10
"""Candidates of a ranking that are named, the best first."""


@dataclass(frozen=True)
class Predictions:
    """What is predicted for some records.

    Args:
        round: After which round the adapter was.
        card_hash: Of the federation.
        task: The card's.
        users: One for each record, in the input's order.
        scores: [n, outputs]; see `fedprofile.common.modeling.head.scores`.
        texts: What the model saw of each record, before it was cut to the card's length; none where nothing is judged.
        judgement: The tenant's; None gives every record's most likely label.
        groups: Index of each record's group; only `[judgement] thresholds` look at it.
        reasons: Why the model says what it says of each record that is left to a person; empty for the others.
        adapter_hash: Of the adapter's arrays.
    """

    round: int
    card_hash: str
    task: TaskSpec
    users: tuple[str, ...]
    scores: NDArray[np.float64]
    texts: tuple[str, ...] = field(repr=False, default=())
    judgement: Judgement | None = None
    groups: tuple[int, ...] = ()
    reasons: tuple[str, ...] = field(repr=False, default=())
    adapter_hash: str = ""

    @property
    def decisions(self) -> tuple[str, ...]:
        """For each record what `[judgement]` makes of it: a label or `fedprofile.client.judgement.REVIEW`."""
        if self.judgement is None:
            return ()
        return self.judgement.decisions(self.scores, self.groups or (0,) * len(self.scores))

    @property
    def outcomes(self) -> list[Any]:
        """What came out for each record: the decision, or the label, labels, number or best candidate predicted."""
        if self.judgement is not None:
            return list(self.decisions)
        predicted = [self.predicted(row) for row in self.scores]
        if isinstance(self.task, RankingTask):
            return [row["best"][0]["candidate"] for row in predicted]
        name = {"multilabel": "labels", "regression": self.task.outputs[0]}.get(self.task.kind, "label")
        return [row[name] for row in predicted]

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
            self.decisions,
            self.users,
            self.scores,
            self.task.outputs,
            self.texts,
            self.reasons,
            json_lines=json_lines,
        )

    def as_csv(self) -> str:
        """A header, and one line a record; of a ranking one line for each of the best candidates."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        if isinstance(self.task, RegressionTask):
            writer.writerow(["user", self.task.target])
            writer.writerows([row["user"], f"{row[self.task.target]:.6g}"] for row in self.as_rows())
            return buffer.getvalue()
        if isinstance(self.task, RankingTask):
            writer.writerow(["user", "rank", "candidate", "score"])
            for row in self.as_rows():
                for rank, best in enumerate(row["best"], start=1):
                    writer.writerow([row["user"], rank, best["candidate"], f"{best['score']:.6f}"])
            return buffer.getvalue()
        if isinstance(self.task, MultilabelTask):
            writer.writerow(["user", "labels", *(f"p({label})" for label in self.task.labels)])
            for row in self.as_rows():
                values = (f"{value:.6f}" for value in row["probabilities"].values())
                writer.writerow([row["user"], self.task.separator.join(row["labels"]), *values])
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
        if isinstance(task, RankingTask):
            best = np.argsort(-row, kind="stable")[:BEST]
            return {"best": [{"candidate": task.candidates[place], "score": float(row[place])} for place in best]}
        if isinstance(task, MultilabelTask):
            return {
                "labels": [label for label, value in zip(task.labels, row, strict=True) if value >= LIKELY],
                "probabilities": dict(zip(task.labels, map(float, row), strict=True)),
            }
        return {
            "label": task.outputs[int(row.argmax())],
            "probabilities": {label: float(value) for label, value in zip(task.outputs, row, strict=True)},
        }


def predict_file(
    directory: TenantDirectory, card: FederationCard, tenant: TenantFile, path: Path, *, reasons: bool = False
) -> Predictions:
    """Predict for the rows of a file, and write down what was decided where the tenant has a `[decisions]` log.

    The file has the columns of the tenant's source; the label is not needed. Where the card's history has events,
    they come from the tenant's own events.

    Args:
        directory: The tenant's.
        card: The agreed one.
        tenant: The tenant file; its columns count, and its events.
        path: CSV, JSON Lines or Parquet, by its ending.
        reasons: Explain each record that is left to a person.

    Returns:
        The predictions.

    Raises:
        ConfigError: The file's ending is not one of these, it cannot be read, no adapter has come yet, or the tenant
            file's `[judgement]` does not fit the card, the log cannot be written, or captum is missing for reasons.
        DataError: Rows are wrong.
    """
    examples = read_questions(directory, card, tenant, path)
    profiler = Profiler.open(directory, card, tenant)
    users = tuple(example.user for example in examples)
    # For the review list alone, which a ranking has none of.
    texts = () if tenant.judgement is None else tuple(_text(example, card) for example in examples)
    found = Predictions(
        round=profiler.round,
        card_hash=card.hash,
        task=card.task,
        users=users,
        scores=profiler.scores(examples),
        texts=texts,
        judgement=profiler.judgement,
        groups=tuple(example.group for example in examples),
        adapter_hash=profiler.adapter_hash,
    )
    if reasons:
        held = [decision == REVIEW for decision in found.decisions]
        found = replace(
            found,
            reasons=tuple(
                because(explain(profiler, example)) if hold else ""
                for example, hold in zip(examples, held, strict=True)
            ),
        )
    log = DecisionLog.of(directory, tenant)
    if log is not None:
        log.append(found.users, found.outcomes, card_hash=card.hash, adapter=profiler.adapter_hash, round=found.round)
    return found


def read_questions(directory: TenantDirectory, card: FederationCard, tenant: TenantFile, path: Path) -> list[Example]:
    """The rows of a file to predict for; see `predict_file`."""
    tenant = _over(tenant, card, path)
    AdapterFolder(directory, card.hash).require()
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"--input {path}: cannot be read ({error.strerror}); give a file with the rows to predict for."
        ) from error
    return read_examples(tenant, card, directory.root, labelled=False)


def check_output(
    path: Path,
    directory: TenantDirectory,
    tenant: TenantFile,
    option: str = "--output",
    endings: tuple[str, ...] = OUTPUTS,
) -> None:
    """Refuse an output that cannot be written, before the seconds that predicting takes.

    Args:
        path: As a person typed it.
        directory: The tenant's.
        tenant: The tenant file.
        option: What it was typed for.
        endings: That its name may have.

    Raises:
        ConfigError: The file's ending is not one of these, it is there already, or it is one that the
            client needs itself.
    """
    if path.suffix not in endings:
        raise ConfigError(f"{option} {path}: give a name that ends in {' or '.join(endings[:2])}.")
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


def check_table(spec: TableSpec, directory: TenantDirectory, tenant: TenantFile) -> None:
    """Refuse a table in a file that the client needs itself; make a new file of SQLite's its owner's alone.

    Raises:
        ConfigError: It is such a file, or cannot be made.
    """
    try:
        file = sqlite_file(spec, directory.root)
    except DataError as error:
        raise ConfigError(f"judgement.review: {error}") from None
    if file is None:
        return
    ledger = directory.ledger_path(directory.read_segment().ledger)
    refuse_own_file(file, "judgement.review", directory, ledger=ledger, tenant=tenant)
    try:
        file.touch(mode=0o600)
    except OSError as error:
        raise ConfigError(f"judgement.review: {file} cannot be written ({error.strerror}).") from None


def add_to_table(predictions: Predictions, spec: TableSpec, folder: Path) -> int:
    """Add what is left to a person to the tenant's table; see `fedprofile.client.review_table`.

    Returns:
        How many records.

    Raises:
        ConfigError: The table cannot be written.
    """
    likeliest = predictions.scores.max(axis=1)
    places = [place for place, decision in enumerate(predictions.decisions) if decision == REVIEW]
    add_reviews(
        spec,
        folder,
        [
            {
                "card": predictions.card_hash,
                "adapter": predictions.adapter_hash,
                "round": predictions.round,
                "user": predictions.users[place],
                "likeliest": predictions.task.outputs[int(predictions.scores[place].argmax())],
                "probability": float(likeliest[place]),
                "because": predictions.reasons[place],
                "history": predictions.texts[place],
            }
            for place in sorted(places, key=lambda place: float(likeliest[place]))
        ],
    )
    return len(places)


def write_review(predictions: Predictions, path: Path) -> int:
    """Write the review list to a new file, readable by its owner only: `.csv`, or JSON Lines.

    Returns:
        How many records are in it.

    Raises:
        ConfigError: It is there already, or cannot be written.
    """
    write_new(path, predictions.as_review(json_lines=path.suffix != ".csv").encode(), "--review")
    return predictions.decisions.count(REVIEW)


def _text(example: Example, card: FederationCard) -> str:
    return "".join(history_pieces(example, card.history))


def _over(tenant: TenantFile, card: FederationCard, path: Path) -> TenantFile:
    """The tenant file with another source of rows to predict for."""
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        raise ConfigError(f"--input {path}: give a file that ends in {', '.join(f'.{kind}' for kind in KINDS)}.")
    source = FileSource.model_validate({"kind": kind, "path": path.absolute()})
    events = (tenant.events or tenant.source) if card.history.event else None
    return tenant.model_copy(update={"source": source, "events": events})

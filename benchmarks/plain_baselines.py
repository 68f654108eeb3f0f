"""What a plain model without privacy makes of a scenario's data at one place: what a federation is to be measured by.

    python -m benchmarks.plain_baselines --data-dir DATA [--only NAME] [--splits 3]

Boosted trees on the card's columns, and for customer-service, which has none, TF-IDF and a logistic regression; both as
scikit-learn sets them. They are trained and judged on the same users as the cells of `benchmarks/scenarios.py`, and go
into `results/scenarios.json` beside them.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from benchmarks.scenarios import PLAIN, RESULTS, experiments, measure
from fedprofile.common.tasks import RegressionTask
from fedprofile.simulations.cell_results import PreparedCell
from fedprofile.simulations.cells import CellRunner
from fedprofile.simulations.exact_metrics import exact_metrics
from fedprofile.simulations.experiment import load_experiment

SEED = 0
TEXT_COLUMN = "text"
"""Of customer-service."""


def baseline(prepared: PreparedCell) -> float:
    """The measure of a plain model on a cell's split.

    Args:
        prepared: Its tenants; trained on all training users, judged on all evaluation users.

    Returns:
        See `benchmarks.scenarios.measure`.
    """
    training = [tenant.records.training for tenant in prepared.tenants]
    evaluation = [tenant.records.evaluation for tenant in prepared.tenants]
    labels, truth = (np.concatenate([part.labels for part in parts]) for parts in (training, evaluation))
    task = prepared.card.task
    if not prepared.card.features.width:
        return measure(exact_metrics(_by_words(prepared, labels), truth, task))
    inputs, asked = (np.concatenate([part.features for part in parts]) for parts in (training, evaluation))
    if isinstance(task, RegressionTask):
        predicted = HistGradientBoostingRegressor(random_state=SEED).fit(inputs, labels.ravel()).predict(asked)
        return measure(exact_metrics(predicted[:, None], truth, task))
    trees = HistGradientBoostingClassifier(random_state=SEED).fit(inputs, labels)
    return measure(exact_metrics(trees.predict_proba(asked), truth, task))


def _by_words(prepared: PreparedCell, labels: NDArray[Any]) -> NDArray[np.float64]:
    texts: dict[bool, list[str]] = {False: [], True: []}
    for tenant in prepared.examples:
        for example in tenant.examples:
            texts[tenant.evaluation_user(example.user)].append(str(example.row[TEXT_COLUMN]))
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(texts[False], labels)
    scores = np.zeros((len(texts[True]), len(prepared.card.task.outputs)))
    scores[:, model.classes_] = model.predict_proba(texts[True])
    return scores


def main(
    data_dir: Annotated[Path, typer.Option(help="The folder that holds the data sets as published.")],
    only: Annotated[list[str] | None, typer.Option(help="Scenarios to run; default all with data.")] = None,
    splits: Annotated[int, typer.Option(min=1, max=3, help="Split seeds 1 to N.")] = 3,
) -> None:
    """Compute and write them down."""
    for name, path in experiments().items():
        if (only and name not in only) or name == "recommendation":
            continue
        experiment = load_experiment(
            path, [f"data.data_dir={data_dir}", f"sweep.split_seed={list(range(1, splits + 1))}"]
        )
        runner = CellRunner(experiment)
        cells = [cell for cell in experiment.cells() if cell.settings.keys() == {"epsilon", "split_seed"}]
        values = [baseline(runner.prepare(cell)) for cell in cells if not cell.noise]
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        known.setdefault(name, {})[PLAIN] = values
        RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(name, [round(value, 3) for value in values], flush=True)


if __name__ == "__main__":
    typer.run(main)

"""Losses and scores of every kind of task against sums written out by hand."""

import math

import numpy as np
import pytest
import torch

from fedprofile.common.modeling.head import scores, summed_loss
from fedprofile.common.tasks import BinaryTask, RegressionTask

RATING = {"kind": "regression", "target": "rating", "low": 1, "high": 5}


def test_a_regressions_losses() -> None:
    """Predictions 0.5 + logit; errors -0.3, 0.05 and 1.5."""
    logits, labels = torch.tensor([[0.1], [0.25], [2.0]]), torch.tensor([0.9, 0.7, 1.0], dtype=torch.float64)
    squared = RegressionTask.model_validate(RATING)
    assert float(summed_loss(logits, labels, squared)) == pytest.approx(0.09 + 0.0025 + 2.25)
    huber = RegressionTask.model_validate({**RATING, "loss": "huber", "huber_delta": 0.2})
    expected = 0.2 * (0.3 - 0.1) + 0.05**2 / 2 + 0.2 * (1.5 - 0.1)
    assert float(summed_loss(logits, labels, huber)) == pytest.approx(expected)


def test_a_regressions_predictions_stay_in_the_range() -> None:
    task = RegressionTask.model_validate(RATING)
    found = scores(torch.tensor([[-9.0], [-0.25], [0.0], [9.0], [math.nan]]), task).numpy()
    assert task.in_unit(found)[:4, 0].tolist() == [1, 2, 3, 5] and np.isnan(found[4, 0])


def test_two_labels_have_softmax_and_cross_entropy() -> None:
    task = BinaryTask.model_validate({"kind": "binary", "labels": ["no", "yes"]})
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]])
    assert scores(logits, task).numpy() == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
    loss = summed_loss(logits, torch.tensor([0, 1]), task)
    assert float(loss) == pytest.approx(-math.log(0.25) - math.log(0.5), rel=1e-6)

"""Words for numbers: a direction only where the whole interval lies on one side of zero."""

from fedprofile.simulations.report.estimates import Estimate, epsilon_text
from fedprofile.simulations.report.focus import cost
from fedprofile.simulations.report.metrics import NEITHER, better, label


def change(price: Estimate, metric: str) -> str:
    """What became of a metric, in words.

    >>> change(Estimate(-0.08, -0.11, -0.05), "auc")
    'falls by 0.08 [0.05, 0.11]'
    >>> change(Estimate(-0.01, -0.03, 0.02), "auc")
    'shows no difference (−0.01 [−0.03, +0.02])'
    """
    if not price.sign:
        return f"shows no difference ({price.text(signed=True)})"
    return f"{'rises' if price.sign > 0 else 'falls'} by {(price if price.sign > 0 else -price).text()}"


def price_of_privacy(price: Estimate | None, metric: str) -> str:
    """What noise costs a metric, in words; `price` is with noise minus without."""
    if price is None:
        return "the price of privacy was not measured"
    if not price.sign:
        found = price.text(signed=True)
        return f"no difference in {label(metric)} was found between training with and without noise ({found})"
    paid = cost(price, metric)
    if better(metric) == NEITHER:
        return f"noise moves it by {price.text(signed=True)}"
    if paid.sign > 0:
        return f"privacy costs {paid.text()}"
    return f"it is better with noise by {(-paid).text()}"


def when(epsilon: float) -> str:
    """The beginning of a sentence: under which condition."""
    return "Without noise" if epsilon == float("inf") else f"At epsilon {epsilon_text(epsilon)}"

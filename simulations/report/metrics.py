"""What the metrics of the results are called in the report, and which way is better."""

HIGHER, LOWER, NEITHER = 1, -1, 0

_KNOWN: dict[str, tuple[str, int]] = {
    "auc": ("AUC", HIGHER),
    "accuracy": ("accuracy", HIGHER),
    "balanced_accuracy": ("balanced accuracy", HIGHER),
    "f1": ("F1", HIGHER),
    "macro_f1": ("macro F1", HIGHER),
    "label_precision": ("label ranking average precision", HIGHER),
    "label_accuracy": ("share of labels told right", HIGHER),
    "ndcg": ("NDCG", HIGHER),
    "hit_rate": ("hit rate", HIGHER),
    "mean_reciprocal_rank": ("mean reciprocal rank", HIGHER),
    "r2": ("R²", HIGHER),
    "true_positive_rate": ("true-positive rate", HIGHER),
    "precision": ("precision", HIGHER),
    "false_positive_rate": ("false-positive rate", LOWER),
    "false_negative_rate": ("false-negative rate", LOWER),
    "selection_rate": ("selection rate", NEITHER),
    "base_rate": ("base rate", NEITHER),
    "mean_prediction": ("mean prediction", NEITHER),
    "log_loss": ("log loss", LOWER),
    "brier": ("Brier score", LOWER),
    "calibration_error": ("calibration error", LOWER),
    "calibration_in_the_large": ("calibration in the large", NEITHER),
    "mean_absolute_error": ("mean absolute error", LOWER),
    "mean_squared_error": ("mean squared error", LOWER),
    "root_mean_squared_error": ("root mean squared error", LOWER),
    "mean_error": ("mean error", NEITHER),
    "demographic_parity": ("demographic-parity gap", LOWER),
    "equalized_odds": ("equalised-odds gap", LOWER),
    "equal_opportunity": ("equal-opportunity gap", LOWER),
}

_OTHER_NAMES = {
    "tpr": "true_positive_rate",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
    "ece": "calibration_error",
    "expected_calibration_error": "calibration_error",
    "brier_score": "brier",
    "brier_score_loss": "brier",
    "mae": "mean_absolute_error",
    "mse": "mean_squared_error",
    "rmse": "root_mean_squared_error",
    "r2_score": "r2",
    "roc_auc": "auc",
    "equalised_odds": "equalized_odds",
}

UTILITY = (
    *("auc", "accuracy", "macro_f1", "label_precision", "ndcg", "r2"),
    *("mean_absolute_error", "mean_squared_error", "log_loss"),
)
"""What a model is judged by: the first of these that was measured."""
GROUPS = (
    *("true_positive_rate", "accuracy", "label_precision", "ndcg", "mean_absolute_error", "mean_squared_error"),
    *("auc", "selection_rate"),
)
"""What is said of a group on the first page: the first of these that was measured."""
GAPS = ("equalized_odds", "equal_opportunity", "demographic_parity")
"""What is said of the gap between groups on the first page: the first of these that was measured."""
DRAWN = (
    *("selection_rate", "true_positive_rate", "false_positive_rate", "auc", "accuracy"),
    *("mean_absolute_error", "mean_squared_error", "mean_error", "label_precision", "ndcg", "hit_rate"),
)
"""Metrics of groups that get a figure of their own, where they were measured; all are in the tables."""

STATISTICS = {
    "value": "",
    "difference": "largest difference",
    "ratio": "smallest ratio",
    "worst": "worst",
    "variance": "variance over tenants",
    "worst_tenth": "worst tenth of tenants",
    "gini": "Gini coefficient over tenants",
    "mean": "mean of the tenants' own",
}


def standard_name(metric: str) -> str:
    """A metric's name in the form in which this module knows it."""
    plain = metric.strip().lower().replace(" ", "_").replace("-", "_")
    return _OTHER_NAMES.get(plain, plain)


def label(metric: str) -> str:
    """A metric's name for people; an unknown one's own, readable."""
    return _KNOWN[metric][0] if metric in _KNOWN else metric.replace("_", " ")


def gap_label(metric: str) -> str:
    """What the gap in a metric is called; a metric that is a gap has its own name.

    >>> gap_label("equalized_odds"), gap_label("accuracy")
    ('equalised-odds gap', 'gap in accuracy')
    """
    return label(metric) if metric in GAPS else f"gap in {label(metric)}"


def better(metric: str) -> int:
    """`HIGHER`, `LOWER` or `NEITHER`; `NEITHER` for an unknown metric."""
    return _KNOWN[metric][1] if metric in _KNOWN else NEITHER


def sentence_start(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]

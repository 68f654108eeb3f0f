"""Explanations of a file's rows, in a file: JSON Lines, plain text, or a web page with nothing to fetch.

The page is for a person, by eye, keyboard and screen reader; every text of the data in it is escaped.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fedprofile.client.decisions import DecisionLog
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.explanation import METHODS, SAMPLES, SAYS, Explanation, explain
from fedprofile.client.output_files import write_new
from fedprofile.client.prediction import read_questions
from fedprofile.client.profiler import Profiler
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, printable
from fedprofile.common.tenant import TenantFile

ENDINGS = (".html", ".txt", ".jsonl")

_STYLE = """
:root { color-scheme: light dark; --up: #1a6e3c; --down: #a3362b; --line: #8884; }
@media (prefers-color-scheme: dark) { :root { --up: #6fcf97; --down: #f2998e; } }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 46rem; padding: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { overflow-wrap: anywhere; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { width: 8rem; }
.bar span { display: block; height: .8rem; margin-top: .35rem; }
.up span { background: var(--up); } .down span { background: var(--down); margin-left: auto; }
@media (max-width: 30rem) { .bar { display: none; } }
"""


def explain_file(
    directory: TenantDirectory,
    card: FederationCard,
    tenant: TenantFile,
    path: Path,
    *,
    user: str | None = None,
    method: str = METHODS[0],
    samples: int = SAMPLES,
    label: str | None = None,
) -> list[Explanation]:
    """Explain what is predicted for the rows of a file, and write it down where the tenant has a `[decisions]` log.

    Args:
        directory: The tenant's.
        card: The agreed one.
        tenant: The tenant file; its columns count, and its events.
        path: See `fedprofile.client.prediction.predict_file`.
        user: Only this user's rows; None is everybody's.
        method: Of `METHODS`.
        samples: Of "shapley".
        label: Which output; None is `explain`'s choice.

    Returns:
        One for each row, in the file's order.

    Raises:
        ConfigError: As for `predict_file`; or method or label is not one, or the log cannot be written.
        DataError: Rows are wrong, or the user has none.
    """
    chosen = next((each for each in METHODS if each == method), None)
    if chosen is None:
        raise ConfigError(f"--method {method}: is not one of {', '.join(METHODS)}.")
    if label is not None and label not in card.task.outputs:
        few = ", ".join(card.task.outputs[:10])
        raise ConfigError(f"--label {label}: is not one of the card's {len(card.task.outputs)}, such as {few}.")
    output = None if label is None else card.task.outputs.index(label)
    examples = read_questions(directory, card, tenant, path)
    mine = [example for example in examples if user is None or example.user == user]
    if not mine:
        raise ConfigError(f"--user: has no row in {path}; give the id as it stands in column '{tenant.columns.user}'.")
    profiler = Profiler.open(directory, card, tenant)
    found = [explain(profiler, example, method=chosen, samples=samples, output=output) for example in mine]
    log = DecisionLog.of(directory, tenant)
    if log is not None:
        log.append(
            [one.user for one in found],
            [one.output for one in found],
            card_hash=card.hash,
            adapter=profiler.adapter_hash,
            round=profiler.round,
            way="explain",
        )
    return found


def write_explanations(explanations: Sequence[Explanation], path: Path) -> None:
    """Write explanations to a new file, readable by its owner only.

    Args:
        explanations: Of one or more rows.
        path: Ends in one of `ENDINGS`.

    Raises:
        ConfigError: It is there already, or cannot be written.
    """
    if path.suffix == ".html":
        text = explanation_page(explanations)
    elif path.suffix == ".txt":
        text = "\n\n".join(one.as_text() for one in explanations) + "\n"
    else:
        text = "".join(json.dumps(one.as_dict(), ensure_ascii=False) + "\n" for one in explanations)
    write_new(path, text.encode(), "--output")


def explanation_page(explanations: Sequence[Explanation]) -> str:
    """All explanations on one page.

    Args:
        explanations: In the order in which they are shown.

    Returns:
        HTML; every text of the data is escaped.
    """
    sections = "\n".join(map(_section, explanations))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Explanations</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Explanations</h1>\n"
        f"<p>{escape(SAYS)} Personal data: keep this file where the data may lie.</p>\n{sections}\n</main>\n</body>\n"
        "</html>\n"
    )


def _section(one: Explanation) -> str:
    largest = max((abs(part.effect) for part in one.parts), default=0.0) or 1.0
    rows = []
    for part in one.parts:
        side = "up" if part.effect >= 0 else "down"
        width = 100 * abs(part.effect) / largest
        kind = "" if part.is_event else " <small>(the record itself)</small>"
        rows.append(
            f'<tr><td>{_text(part.text)}{kind}</td><td class="bar {side}" aria-hidden="true">'
            f'<span style="width:{width:.0f}%"></span></td><td>{part.effect:+.3f}</td></tr>'
        )
    return (
        f"<section>\n<h2>{_text(one.user)}: {_text(one.output)} {one.score:.3f}</h2>\n"
        f"<p>With nothing known the score is {one.base:.3f}. Method: {one.method}; adapter after round "
        f"{one.round}.</p>\n"
        '<table>\n<thead><tr><th scope="col">Part, oldest first</th><th class="bar" aria-hidden="true"></th>'
        f'<th scope="col">Effect</th></tr></thead>\n<tbody>\n{"".join(rows)}\n</tbody>\n</table>\n</section>'
    )


def _text(text: str) -> str:
    return escape(printable(text))

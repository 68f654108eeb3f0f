"""What a report consists of, before it is HTML or Markdown."""

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Args:
        caption: A sentence.
        header: One for each column.
        rows: As many cells as the header.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A picture and its numbers.

    Args:
        title: What it shows.
        description: The text alternative: what one sees in it.
        svg: The inline picture, `role="img"`.
        table: The same numbers.
    """

    title: str
    description: str
    svg: Markup
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        key: Its anchor.
        title: Its heading.
        paragraphs: What one needs to know to read it.
        items: Sentences that stand for themselves.
        figures: With their numbers behind them.
        tables: Shown as they are.
        more: Tables that are long, or for those who look for them.
        epsilons: Whether it speaks of any, so that what they mean stands at its head.
    """

    key: str
    title: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    more: tuple[Table, ...] = ()
    epsilons: bool = True


@dataclass(frozen=True)
class Findings:
    """What was found about one thing.

    Args:
        topic: A heading.
        sentences: The most important first.
    """

    topic: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A report.

    Args:
        title: Of the page.
        summary: What was run, in a sentence.
        notices: What must be known before anything else.
        findings: By topic.
        meaning: What every epsilon means; empty where there is none.
        sections: In their order.
    """

    title: str
    summary: str
    notices: tuple[str, ...]
    findings: tuple[Findings, ...]
    meaning: str
    sections: tuple[Section, ...]

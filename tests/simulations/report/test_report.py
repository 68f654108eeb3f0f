"""The written files: well-formed, alone, accessible, deterministic, and without what must not be shown."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from tests.simulations.report.synthetic import PROMISE, SECRET, SECRET_USERS, Synthetic, facts

from fedprofile.common.errors import DataError
from fedprofile.simulations.report import PartitionPicture, write_report
from fedprofile.simulations.report.drawing import INK, MUTED, PAPER, RULE, SERIES
from fedprofile.simulations.report.results import COLUMNS, Results
from fedprofile.simulations.small_counts import SMALLEST_COUNT, safe_counts

HOSTILE = "<script>alert('x')</script> | `b` $\\alpha$ [y](http://example.org) \x07 \u202e"
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """The page's elements, with what is open around each; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), "an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}, tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, *tags: str) -> Iterator[tuple[str, dict[str, str], tuple[str, ...]]]:
        return (element for element in self.elements if element[0] in tags)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(out, Synthetic(HOSTILE).table(), facts(HOSTILE, real_data=True))
    return out


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "report.html").read_text(encoding="utf-8"))


def test_nothing_comes_from_elsewhere_and_nothing_runs(report: Path, page: Page) -> None:
    html = (report / "report.html").read_text(encoding="utf-8")
    assert not list(page.all("script", "link", "iframe", "img", "object", "embed", "base"))
    assert "@import" not in html and "@font-face" not in html
    for tag, attributes, _ in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name, value in attributes.items():
            if name in ("src", "srcset", "data", "xlink:href") or (name == "href" and tag != "a"):
                assert tag == "use" and value.startswith("#")
            assert "url(" not in value or "url(#" in value
    links = {attributes["href"] for _, attributes, _ in page.all("a") if not attributes["href"].startswith("#")}
    assert links == {"https://arxiv.org/abs/2305.08846"}


def test_hostile_names_stay_text(report: Path, page: Page) -> None:
    assert "<script>alert('x')</script>" in "".join(page.text)
    markdown = (report / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "](http" not in markdown and "\u202e" not in markdown
    assert "\x07" not in markdown and "\x07" not in (report / "report.html").read_text(encoding="utf-8")
    # Every row of a Markdown table has as many cells as its header.
    lines = markdown.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("| ---"):
            cells = len(re.findall(r"(?<!\\)\|", line))
            block = iter(lines[number - 1 :])
            rows = []
            while (row := next(block, "")).startswith("|"):
                rows.append(len(re.findall(r"(?<!\\)\|", row)))
            assert set(rows) == {cells}


def test_every_figure_has_a_text_alternative_and_a_table(page: Page) -> None:
    figures = list(page.all("figure"))
    drawn = [attributes for tag, attributes, _ in page.all("svg")]
    assert len(figures) == len(drawn) >= 15
    for attributes in drawn:
        assert attributes["role"] == "img" and len(attributes["aria-label"]) > 40
    assert sum(1 for _, _, around in page.all("table") if "figure" in around) == len(figures)
    assert sum(1 for _, _, around in page.all("figcaption") if "figure" in around) == len(figures)
    assert all("details" in around for _, _, around in page.all("table") if "figure" in around)
    assert len(list(page.all("caption"))) == len(list(page.all("table")))
    for _, attributes, around in page.all("th"):
        assert attributes["scope"] == ("col" if "thead" in around else "row")


def test_a_figure_and_its_table_show_the_same_numbers(page: Page) -> None:
    html = "".join(page.text)
    for _, attributes, _ in page.all("svg"):
        numbers = re.findall(r"[−+]?\d+\.\d+ \[[^\]]+\]", attributes["aria-label"])
        for number in numbers:
            assert number.replace(" ", "\N{NO-BREAK SPACE}") in html


def test_headings_landmarks_and_anchors(page: Page) -> None:
    levels = [int(tag[1]) for tag, _, _ in page.all("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(list(page.all(name))) for name in ("main", "header", "nav", "footer", "title")] == [1, 1, 1, 1, 1]
    assert next(page.all("html"))[1]["lang"] == "en"
    identifiers = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    first = next(page.all("a"))[1]
    assert first["class"] == "skip" and first["href"] == "#findings"
    for _, attributes, _ in page.elements:
        for reference in (attributes.get("href", ""), attributes.get("aria-labelledby", "")):
            if reference and not reference.startswith("http"):
                assert reference.removeprefix("#") in identifiers
        for reference in re.findall(r"url\(#([^)]+)\)", " ".join(attributes.values())):
            assert reference in identifiers


def test_figures_take_the_colours_of_the_page(page: Page) -> None:
    for tag, attributes, around in page.elements:
        if "svg" in around:
            painted = " ".join(attributes.get(name, "") for name in ("style", "fill", "stroke"))
            assert not re.search(r"#[0-9a-fA-F]{6}|#[0-9a-fA-F]{3}\b|rgb", painted.replace("url(#", "")), (tag, painted)
            assert "font:" not in painted and "font-family" not in painted
    assert len({INK, MUTED, RULE, PAPER, *SERIES}) == 4 + len(SERIES)


def test_suppressed_numbers_are_nowhere(report: Path, page: Page) -> None:
    shown = "".join(page.text) + json.dumps([attributes for _, attributes, _ in page.all("svg")])
    for text in (shown, (report / "report.md").read_text(encoding="utf-8")):
        assert "0.988" not in text and "0.9877" not in text and str(SECRET)[:6] not in text
        assert not re.search(rf"(?<![\d.\-−:]){SECRET_USERS}(?![\d.\-])", text)
        assert "too few people" in text and "not shown" in text
    stored = pd.read_parquet(report / "results.parquet")
    assert list(stored.columns) == list(COLUMNS)
    hidden = stored[stored["suppressed"]]
    assert len(hidden) == Synthetic().table()["suppressed"].sum() > 0
    assert hidden[["value", "low", "high"]].isna().all(axis=None) and (hidden["users"] == 0).all()
    assert str(stored["users"].dtype) == "int64"
    assert stored.loc[~stored["suppressed"], "value"].notna().all()


def test_what_is_stored_is_what_came_in(report: Path) -> None:
    came = Synthetic(HOSTILE).table()
    stored = pd.read_parquet(report / "results.parquet")
    kept = ~came["suppressed"]
    assert (stored["group"] == came["group"]).all()
    assert (stored.loc[kept, "value"] == came.loc[kept, "value"]).all()


def test_real_data_says_so_before_the_findings(report: Path, tmp_path: Path) -> None:
    for name, findings in (("report.html", 'id="findings"'), ("report.md", "## Findings")):
        text = (report / name).read_text(encoding="utf-8")
        assert 0 < text.index("outside every ledger") < text.index(findings)
    write_report(tmp_path, Synthetic().table(), facts())
    assert "real data and outside every ledger" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_section_that_speaks_of_epsilon_says_what_it_means(report: Path) -> None:
    sections = (report / "report.md").read_text(encoding="utf-8").split("\n## ")
    spoken = [section for section in sections[1:] if re.search(r"epsilon [0-9]|epsilon=[0-9]", section)]
    assert len(spoken) >= 8
    for section in spoken:
        assert all(word in section for word in ("delta=", "unit=user", "adjacency=add-or-remove-one", "accountant=prv"))
    assert "1e-05" in str(PROMISE)


def test_the_same_input_gives_the_same_bytes(report: Path, tmp_path: Path) -> None:
    write_report(tmp_path, Synthetic(HOSTILE).table(), facts(HOSTILE, real_data=True))
    for name in ("report.html", "report.md", "results.parquet"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()


def test_a_count_does_not_follow_from_the_others() -> None:
    counts = {"one": {"a": 400, "b": 30, "c": 3}, "two": {"a": 50, "b": 60, "c": 70}, "three": {"a": 90, "c": 90}}
    assert safe_counts(counts) == {
        "one": {"a": 400, "b": None, "c": None},
        "two": {"a": 50, "b": 60, "c": 70},
        "three": {"a": None, "b": None, "c": 90},
    }
    assert safe_counts({"t": {"a": SMALLEST_COUNT, "b": SMALLEST_COUNT - 1}}) == {"t": {"a": None, "b": None}}


def test_many_labels_groups_and_tenants_are_drawn(tmp_path: Path) -> None:
    tenants = {
        f"site {place:03d} of a long name": {f"intent-{label}": 21 + label for label in range(150)}
        for place in range(64)
    }
    picture = PartitionPicture("label-skew", tenants)
    known = dataclasses.replace(
        facts(), partitions=(picture,), audit=None, truth=None, spent=(), composed=(), promise=None
    )
    table = Synthetic("日本").table()
    write_report(tmp_path, table, known)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "all others" in html and "site 063 of a long name" in html and "日本" in html


def test_results_that_are_none_are_refused() -> None:
    table = Synthetic().table()
    with pytest.raises(DataError, match="without the column"):
        Results(table.drop(columns="metric"))
    with pytest.raises(DataError, match="have no row"):
        Results(table.iloc[:0])
    with pytest.raises(DataError, match=r"1 row\(s\) have the same"):
        Results(pd.concat([table, table.iloc[:1]]))

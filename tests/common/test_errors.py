"""What an error quotes of somebody else's file cannot command the terminal that shows it."""

import pytest

from fedprofile.common.errors import ConfigError, DataError, FedprofileError, PolicyRefusal, Problem, printable


@pytest.mark.parametrize("kind", [FedprofileError, ConfigError, DataError, PolicyRefusal])
def test_control_characters_are_written_out(kind: type[FedprofileError]) -> None:
    shown = str(kind("a \x1b[2J b \x9b c \u202e d \x7f e \ud800\nnext line: écran 中文"))
    assert shown == "a \\x1b[2J b \\x9b c \\u202e d \\x7f e \\ud800\nnext line: écran 中文"


def test_the_problems_of_data_are_too() -> None:
    problem = Problem("events", 1, "a\x1b", "is no number")
    assert (
        str(DataError("rows are wrong:", (problem,)))
        == "rows are wrong:\n  events, line 1, column 'a\\x1b': is no number"
    )


def test_ten_problems_are_named_or_all() -> None:
    error = DataError("rows are wrong:", tuple(Problem("source", line, None, "is wrong") for line in range(1, 13)))
    assert "line 10:" in str(error) and "line 11:" not in str(error) and "and 2 more" in str(error)
    assert "line 12: is wrong" in str(error.in_full()) and "more" not in str(error.in_full())


def test_printable_text_is_kept() -> None:
    assert printable("Crème brûlée ; 购物车\n") == "Crème brûlée ; 购物车\n"

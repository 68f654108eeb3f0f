"""What an error quotes of somebody else's file cannot command the terminal that shows it."""

import pytest

from fedprofile.common.errors import ConfigError, DataError, FedprofileError, PolicyRefusal, printable


@pytest.mark.parametrize("kind", [FedprofileError, ConfigError, DataError, PolicyRefusal])
def test_control_characters_are_written_out(kind: type[FedprofileError]) -> None:
    shown = str(kind("a \x1b[2J b \x9b c \u202e d \x7f e \ud800\nnext line: écran 中文"))
    assert shown == "a \\x1b[2J b \\x9b c \\u202e d \\x7f e \\ud800\nnext line: écran 中文"


def test_the_problems_of_data_are_too() -> None:
    assert (
        str(DataError("rows are wrong:", ("line 1, column 'a\x1b'",))) == "rows are wrong:\n  line 1, column 'a\\x1b'"
    )


def test_printable_text_is_kept() -> None:
    assert printable("Crème brûlée ; 购物车\n") == "Crème brûlée ; 购物车\n"

"""The targets take their seeds, and what fuzzing has found once."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import TARGETS, seeds

FOUND: dict[str, list[bytes]] = {
    # Errors that quoted what a terminal obeys.
    "enroll": [b'{"promise": {"\x7fpsilon": 1}}', b'{"tenant": "\\u001b[31m", "\\u001b]0;title\\u0007": 1}'],
    "invite": [b'{"format": 1, "address": "\\u202elocalhost:1\\u009b2J"}'],
    "card": [b'name = "\\u001b[2J"'],
}
"""What raised something undocumented before it was mended."""


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_taken(target: str) -> None:
    assert seeds(target)
    for seed in seeds(target):
        TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_seeds_raise_nothing_undocumented(target: str, data: st.DataObject) -> None:
    seed = bytearray(seeds(target)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(seed) - 1))
        match data.draw(st.sampled_from(["change", "cut", "repeat"])):
            case "change":
                seed[place] = data.draw(st.integers(0, 255))
            case "cut":
                del seed[place : place + data.draw(st.integers(1, 16))]
            case _:
                seed[place:place] = seed[place : place + 16]
        if not seed:
            break
    TARGETS[target](bytes(seed))


@pytest.mark.parametrize(("target", "data"), [(target, data) for target, inputs in FOUND.items() for data in inputs])
def test_what_was_found_stays_mended(target: str, data: bytes) -> None:
    TARGETS[target](data)

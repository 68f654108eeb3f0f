"""The adapter's wire form: what is refused, round trips, norms, hashes, files."""

import hashlib
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedprofile.common.adapters import (
    AdapterError,
    Arrays,
    Layout,
    arrays_hash,
    check_arrays,
    flatten,
    read_arrays,
    scale_to_norm,
    unflatten,
    update_norm,
    write_arrays,
)

LAYOUT: Layout = {"b.lora_A.weight": ((2, 3), "float32"), "a.weight": ((4,), "float32"), "head.bias": ((), "float32")}


def _arrays(values: float = 1.0) -> Arrays:
    return {name: np.full(shape, values, dtype) for name, (shape, dtype) in LAYOUT.items()}


def _strategy(largest: float = 1e3) -> st.SearchStrategy[Arrays]:
    numbers = st.floats(-largest, largest, width=32)
    return st.fixed_dictionaries(
        {name: hnp.arrays(np.float32, shape, elements=numbers) for name, (shape, _) in LAYOUT.items()}
    )


def test_what_fits_passes_whatever_the_order() -> None:
    check_arrays(_arrays(), LAYOUT)
    check_arrays(dict(reversed(_arrays().items())), LAYOUT)
    check_arrays({}, {})
    check_arrays({"empty": np.zeros((0, 3), np.float32)}, {"empty": ((0, 3), "float32")})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"a.weight": None}, "1 arrays are missing, such as a.weight"),
        ({"secret-name": np.zeros(1, np.float32)}, "1 arrays have unknown names"),
        ({"a.weight": np.zeros(5, np.float32)}, r"shape of a.weight is not \(4,\)"),
        ({"a.weight": np.zeros((4, 1), np.float32)}, "shape of a.weight"),
        ({"a.weight": np.zeros(4, np.float64)}, "dtype of a.weight is not float32"),
        ({"a.weight": np.zeros(4, ">f4")}, "dtype of a.weight"),
        ({"a.weight": np.array([0, 0, 0, np.nan], np.float32)}, "a.weight holds values that are not finite"),
        ({"head.bias": np.array(-np.inf, np.float32)}, "head.bias holds values that are not finite"),
        ({"a.weight": np.array([0, -1e9, 0, 0], np.float32)}, "a.weight holds values above 10000"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, np.ndarray | None], text: str) -> None:
    arrays = {name: value for name, value in {**_arrays(), **change}.items() if value is not None}
    with pytest.raises(AdapterError, match=text) as raised:
        check_arrays(arrays, LAYOUT)
    assert "secret-name" not in str(raised.value)


@given(_strategy())
def test_flatten_round_trips(arrays: Arrays) -> None:
    values = flatten(arrays, LAYOUT)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values[:6], arrays["b.lora_A.weight"].ravel())
    back = unflatten(values, LAYOUT)
    assert list(back) == list(LAYOUT)
    for name, array in arrays.items():
        assert back[name].dtype == np.float32
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("size", [0, 10, 12])
def test_a_vector_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="11 values"):
        unflatten(np.zeros(size), LAYOUT)


@given(_strategy(), st.floats(1e-3, 1e4))
def test_scaling_keeps_the_direction_and_the_bound(arrays: Arrays, largest: float) -> None:
    norm = float(np.linalg.norm(flatten(arrays, LAYOUT)))
    assert update_norm(arrays) == pytest.approx(norm, rel=1e-12)
    scaled = scale_to_norm(arrays, largest)
    assert update_norm(scaled) <= largest * (1 + 1e-6) + 1e-30
    for name, array in arrays.items():
        if norm <= largest:
            np.testing.assert_array_equal(scaled[name], array)
        else:
            np.testing.assert_allclose(scaled[name], array.astype(np.float64) * (largest / norm), rtol=1e-5, atol=1e-30)
        assert not np.shares_memory(scaled[name], array)


def test_a_norm_beyond_float32_is_still_right() -> None:
    assert update_norm({"a": np.full(4, 1e30, np.float32)}) == pytest.approx(2e30)
    assert np.isnan(update_norm({"a": np.array([np.nan])}))


def test_the_hash_is_of_the_values_and_not_of_their_layout_in_memory() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = arrays_hash({"a": matrix, "b": np.ones(2)})
    assert found == arrays_hash({"b": np.ones(2), "a": np.asfortranarray(matrix)})
    assert found == arrays_hash({"a": matrix.astype(">f4"), "b": np.ones(2)})
    others: list[Arrays] = [
        {"a": matrix + 1, "b": np.ones(2)},
        {"a": matrix.reshape(3, 2), "b": np.ones(2)},
        {"a": matrix.astype(np.float64), "b": np.ones(2)},
        {"a": matrix, "c": np.ones(2)},
        {"a": matrix},
        {"a": matrix.T, "b": np.ones(2)},
    ]
    assert len({found, *(arrays_hash(other) for other in others)}) == 1 + len(others)


def test_the_hash_is_this_one() -> None:
    # Written out by hand: both ends of a wire, and a later version, must agree on it.
    value = np.array([1.0, 2.0], np.float32)
    parts = [b"w", b"float32", (2).to_bytes(8, "little")]
    content = b"".join(len(part).to_bytes(8, "little") + part for part in parts) + value.tobytes()
    assert arrays_hash({"w": value}) == hashlib.sha256(content).hexdigest()


@given(_strategy())
def test_files_round_trip(tmp_path_factory: pytest.TempPathFactory, arrays: Arrays) -> None:
    path = tmp_path_factory.mktemp("arrays") / "adapter.safetensors"
    write_arrays(path, arrays)
    found = read_arrays(path)
    assert list(found) == sorted(arrays)
    assert arrays_hash(found) == arrays_hash(arrays)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_arrays_that_are_not_contiguous_are_written_as_they_read(tmp_path: Path) -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_arrays(tmp_path / "x", {"a": matrix.T, "b": np.asfortranarray(matrix)})
    found = read_arrays(tmp_path / "x")
    np.testing.assert_array_equal(found["a"], matrix.T)
    np.testing.assert_array_equal(found["b"], matrix)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 64])
def test_a_file_that_is_not_one_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(AdapterError, match="x: "):
        read_arrays(tmp_path / "x")

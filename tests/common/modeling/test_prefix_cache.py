"""The prefix cache: the same activations, private files, foreign secrets, pruning, kills at any byte."""

import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.prefix_cache import ActivationError, NumberFormat, PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel

SECRET = b"a secret of this tenant, 32 bytes"
MakeModel = Callable[..., ProfileModel]
Tokens = Sequence[NDArray[np.int32]]


class Counting:
    """A source of made-up activations that tells how many records it computed."""

    def __init__(self, space: str = "space", width: int = 3, pooled: bool = False, factor: float = 1.0) -> None:
        self.prefix_space = space
        self.hidden_size = width
        self.caches_pooled = pooled
        self.computed = 0
        self.factor = factor

    def prefix(self, tokens: Tokens) -> list[torch.Tensor]:
        self.computed += len(tokens)
        found = [torch.from_numpy(record[:, None] * self.factor + np.arange(3.0)[None, :]) for record in tokens]
        return [activations[:1].float() if self.caches_pooled else activations.float() for activations in found]


def _records(*sizes: int, seed: int = 0) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 500, size).astype(np.int32) for size in sizes]


def _expected(tokens: Tokens, length: int) -> NDArray[np.float32]:
    found = np.zeros((len(tokens), length, 3), np.float32)
    for row, record in zip(found, tokens, strict=True):
        row[: len(record)] = record[:, None] + np.arange(3.0)[None, :]
    return found


def test_the_cache_gives_what_the_model_computes(
    make_model: MakeModel, make_records: Callable[..., EncodedRecords], tmp_path: Path
) -> None:
    model = make_model()
    tokens = make_records(model, count=40, longest=32).tokens
    formats: tuple[tuple[NumberFormat, float], ...] = (("float32", 0.0), ("float16", 2e-3), ("bfloat16", 2e-2))
    direct = model.prefix(tokens)
    for number_format, tolerance in formats:
        cache = PrefixCache(model, folder=tmp_path / number_format, secret=SECRET, number_format=number_format)
        cache.fill(tokens)
        again = PrefixCache(model, folder=tmp_path / number_format, secret=SECRET, number_format=number_format)
        found = again.get(tokens, 32)
        assert found.dtype == torch.float32
        for row, record in zip(found, direct, strict=True):
            torch.testing.assert_close(row[: len(record)], record, rtol=tolerance, atol=tolerance)
            assert not row[len(record) :].any()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("private", [False, True])
def test_each_record_is_computed_once(pooled: bool, private: bool, tmp_path: Path) -> None:
    source = Counting(pooled=pooled)
    place = {"folder": tmp_path / "cache", "secret": SECRET} if private else {}
    cache = PrefixCache(source, **place)  # type: ignore[arg-type]
    tokens = _records(3, 5, 1)
    told: list[int] = []
    cache.fill([*tokens, tokens[0]], told.append)
    assert (source.computed, sum(told), len(cache)) == (3, 3, 3)
    # Two at once, one of them new, one of them twice.
    more = [tokens[1], *_records(4, seed=9), tokens[1]]
    found = cache.get(more, 8)
    assert source.computed == 4
    expected = _expected(more, 8)
    np.testing.assert_array_equal(found.numpy(), expected[:, 0] if pooled else expected)


def test_a_private_cache_is_private_and_survives(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    first, second = Counting(), Counting()
    tokens = _records(3, 5, 1)
    cache = PrefixCache(first, folder=folder, secret=SECRET)
    cache.fill(tokens[:2])
    cache.fill(tokens[2:])
    again = PrefixCache(second, folder=folder, secret=SECRET)
    np.testing.assert_array_equal(again.get(tokens, 8).numpy(), _expected(tokens, 8))
    assert second.computed == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    PrefixCache(Counting(), folder=folder, secret=SECRET)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_token_ids_do_not_stand_in_the_index(tmp_path: Path) -> None:
    tokens = _records(16)
    PrefixCache(Counting(), folder=tmp_path, secret=SECRET).fill(tokens)
    other = tmp_path / "other"
    PrefixCache(Counting(), folder=other, secret=b"another secret of 32 bytes......").fill(tokens)
    content = (tmp_path / "index").read_bytes()
    assert tokens[0].tobytes() not in content
    # Without the secret nobody can tell whether a history is in it: another one's keys have nothing in common.
    assert content[69:101] != (other / "index").read_bytes()[69:101]


@pytest.mark.parametrize("change", ["secret", "space", "format"])
def test_what_belongs_to_another_secret_or_model_is_deleted(change: str, tmp_path: Path) -> None:
    tokens = _records(3, 5)
    PrefixCache(Counting(), folder=tmp_path, secret=SECRET).fill(tokens)
    before = {path.name for path in tmp_path.iterdir() if path.name != "index"}
    source = Counting(space="another" if change == "space" else "space")
    cache = PrefixCache(
        source,
        folder=tmp_path,
        secret=b"another secret of 32 bytes......" if change == "secret" else SECRET,
        number_format="bfloat16" if change == "format" else "float16",
    )
    assert len(cache) == 0
    assert not before & {path.name for path in tmp_path.iterdir()}
    cache.get(tokens, 8)
    assert source.computed == 2


@pytest.mark.parametrize("private", [False, True])
def test_prune_deletes_all_that_is_not_referred_to(private: bool, tmp_path: Path) -> None:
    source = Counting()
    place = {"folder": tmp_path / "cache", "secret": SECRET} if private else {}
    cache = PrefixCache(source, **place)  # type: ignore[arg-type]
    tokens = _records(3, 5, 1, 7)
    cache.fill(tokens)
    assert cache.prune(tokens) == 0
    kept = [tokens[2], tokens[1], *_records(2, seed=5)]
    assert cache.prune(kept) == 2
    assert len(cache) == 2
    np.testing.assert_array_equal(cache.get([tokens[1], tokens[2]], 8).numpy(), _expected([tokens[1], tokens[2]], 8))
    assert source.computed == 4
    if private:
        gone = (tokens[0][:, None] + np.arange(3.0)).astype(np.float16).tobytes()
        files = list((tmp_path / "cache").iterdir())
        assert len(files) == 2
        assert not any(gone in path.read_bytes() for path in files)
        assert len(PrefixCache(source, folder=tmp_path / "cache", secret=SECRET)) == 2
    cache.get([tokens[0]], 8)
    assert source.computed == 5
    assert cache.prune([]) == 3
    assert len(cache) == 0
    np.testing.assert_array_equal(cache.get(tokens, 8).numpy(), _expected(tokens, 8))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_files_cut_at_any_byte_give_whole_records(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    tokens = _records(3, 5, 1, 7)
    cache = PrefixCache(Counting(), folder=folder, secret=SECRET)
    for record in tokens:
        cache.fill([record])
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    source = Counting()
    again = PrefixCache(source, folder=folder, secret=SECRET)
    there = len(again)
    np.testing.assert_array_equal(again.get(tokens, 8).numpy(), _expected(tokens, 8))
    assert source.computed == 4 - there
    last = PrefixCache(source, folder=folder, secret=SECRET)
    np.testing.assert_array_equal(last.get(tokens, 8).numpy(), _expected(tokens, 8))
    assert source.computed == 4 - there


def test_rows_that_no_index_names_are_overwritten(tmp_path: Path) -> None:
    tokens = _records(3, 5)
    PrefixCache(Counting(), folder=tmp_path, secret=SECRET).fill(tokens[:1])
    rows = next(path for path in tmp_path.iterdir() if path.name != "index")
    with rows.open("ab") as file:
        file.write(b"left by a killed process")
    cache = PrefixCache(Counting(), folder=tmp_path, secret=SECRET)
    np.testing.assert_array_equal(cache.get(tokens, 8).numpy(), _expected(tokens, 8))
    assert rows.stat().st_size == 8 * 3 * 2


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("number_format", ["float16", "bfloat16", "float32"])
def test_a_record_that_is_not_finite_is_held_and_disturbs_no_other(
    number_format: NumberFormat, private: bool, pooled: bool, tmp_path: Path
) -> None:
    class Broken(Counting):
        def prefix(self, tokens: Tokens) -> list[torch.Tensor]:
            found = super().prefix(tokens)
            for record, activations in zip(tokens, found, strict=True):
                if record[0] == 7:
                    activations[-1, 1] = torch.inf
            return found

    source = Broken(pooled=pooled)
    place = {"folder": tmp_path / "cache", "secret": SECRET} if private else {}
    cache = PrefixCache(source, number_format=number_format, **place)  # type: ignore[arg-type]
    tokens = [np.array(ids, np.int32) for ids in ([1, 2], [7, 8, 9], [3])]
    cache.fill(tokens)
    assert cache.broken(tokens).tolist() == [False, True, False] and cache.broken([]).shape == (0,)
    found = cache.get(tokens, 8).numpy()
    expected = _expected(tokens, 8)[:, 0] if pooled else _expected(tokens, 8)
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    assert np.isnan(found[1] if pooled else found[1, :3]).all()
    cache.check_finite([tokens[0], tokens[2]])
    texts = set()
    for some in (tokens, tokens[1:2], [np.array([7], np.int32)]):
        with pytest.raises(ActivationError) as raised:
            cache.check_finite(some)
        texts.add(str(raised.value))
    assert len(texts) == 1
    # It is computed once, like any other, and goes like any other.
    assert source.computed == 4
    assert cache.prune([tokens[0]]) == 3


def test_values_beyond_the_number_format_are_not_finite() -> None:
    tokens = [np.array([5, 6], np.int32), np.array([1], np.int32)]
    source = Counting(factor=2e4)
    assert PrefixCache(source).broken(tokens).tolist() == [True, False]
    assert not PrefixCache(source, number_format="bfloat16").broken(tokens).any()


@pytest.mark.parametrize("secret", [None, b"too short"])
def test_a_folder_needs_a_secret(secret: bytes | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        PrefixCache(Counting(), folder=tmp_path, secret=secret)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_beyond_the_limit_is_computed_each_time(pooled: bool, on_disk: bool, tmp_path: Path) -> None:
    tokens = _records(5, 9, 7, 6)
    source = Counting(pooled=pooled)
    row = 3 * (4 if pooled else 2)
    # Room for the two shortest: 5 and 6 tokens, or one vector each.
    room = 2 * row if pooled else 12 * row
    folder = tmp_path / "cache" if on_disk else None
    cache = PrefixCache(source, folder=folder, secret=SECRET if on_disk else None, limit=room)
    unlimited = PrefixCache(Counting(pooled=pooled))
    cache.fill(tokens)
    assert len(cache) == 2 and 0 < cache.size <= room
    before = source.computed
    for _ in range(2):
        assert torch.equal(cache.get(tokens, 10), unlimited.get(tokens, 10))
        assert not cache.broken(tokens).any()
    assert source.computed == before + 2 * 2 * 2
    assert len(cache) == 2 and cache.size <= room


def test_a_record_that_is_not_finite_is_told_also_beyond_the_limit() -> None:
    tokens = _records(5, 9)
    cache = PrefixCache(Counting(factor=1e30), limit=1)
    assert len(cache) == 0 and cache.broken(tokens).all()
    with pytest.raises(ActivationError):
        cache.check_finite(tokens)

"""The frozen part's output for each record, computed once for all steps and rounds.

It is personal data. A tenant's cache lies in a private folder; its keys are HMACs of the token ids under a secret of
the tenant, so that nobody without the secret can ask whether a history is in it; what the current source does not
refer to is deleted by `prune` at every load. Numbers are stored in 16 bits (pooled vectors in 32).

A record at which the frozen part gives a value that is not finite, or that the number format cannot hold, is kept as
nothing but not-a-numbers. It disturbs no other record, and every output for it is not a number either, which training
counts as zero and evaluation as the lowest bin. Whether it is there must not decide whether a request is answered: so
nothing fails because of it but `check_finite`, which is for the start, before anything is sent.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedprofile.common.errors import FedprofileError
from fedprofile.common.modeling.prefix_store import FileStore, MemoryStore, Rows, Store

NumberFormat = Literal["float16", "bfloat16", "float32"]

RECORDS_AT_ONCE = 512
"""How many new records are computed before they are stored."""

_FORMATS: dict[NumberFormat, tuple[torch.dtype, np.dtype[np.signedinteger]]] = {
    "float16": (torch.float16, np.dtype(np.int16)),
    "bfloat16": (torch.bfloat16, np.dtype(np.int16)),
    "float32": (torch.float32, np.dtype(np.int32)),
}

Tokens = Sequence[NDArray[np.int32]]


class ActivationError(FedprofileError):
    """The frozen layers gave values that are not finite. The text is constant: which record did it is private."""

    def __init__(self) -> None:
        super().__init__("the base model's activations are not finite in the cache's number format; use another one.")


class PrefixSource(Protocol):
    """What computes the activations; see `fedprofile.common.modeling.profile_model.ProfileModel`."""

    @property
    def prefix_space(self) -> str:
        """All that they depend on besides the tokens."""
        ...

    @property
    def hidden_size(self) -> int:
        """Their width."""
        ...

    @property
    def caches_pooled(self) -> bool:
        """Whether a record has one pooled vector instead of one for each token."""
        ...

    def prefix(self, tokens: Tokens) -> list[torch.Tensor]:
        """float32 [rows, width] for each record."""
        ...


class PrefixCache:
    """Activations by token ids.

    Args:
        model: Computes what is not there. Models of an equal `prefix_space` may use one cache.
        folder: A tenant's private folder; in memory where there is none.
        secret: The tenant's, at least 16 bytes; needed with a folder.
        number_format: `float16` unless given, `float32` for pooled vectors; `bfloat16` suits large decoders, whose
            activations are beyond float16's range.
        limit: Bytes of activations at most; what does not fit is computed each time that it is asked for.

    Raises:
        ValueError: A folder without a secret.
    """

    def __init__(
        self,
        model: PrefixSource,
        *,
        folder: Path | None = None,
        secret: bytes | None = None,
        number_format: NumberFormat | None = None,
        limit: int | None = None,
    ) -> None:
        if folder is not None and (secret is None or len(secret) < 16):
            raise ValueError("a prefix cache in a folder needs a secret of at least 16 bytes")
        self.space = model.prefix_space
        self._model = model
        self._pooled = model.caches_pooled
        chosen: NumberFormat = number_format or ("float32" if self._pooled else "float16")
        self._dtype, self._stored = _FORMATS[chosen]
        self._row_bytes = model.hidden_size * self._stored.itemsize
        self._limit = limit
        # The state after secret, space and format; each key goes on from a copy of it.
        self._keyed = hmac.new(secret or os.urandom(32), f"{self.space} | {chosen}\0".encode(), hashlib.sha256)
        self._store: Store = (
            MemoryStore(model.hidden_size, self._stored)
            if folder is None
            else FileStore(folder, self._key(b"the mark of the index"), model.hidden_size, self._stored)
        )

    def __len__(self) -> int:
        return len(self._store.index)

    @property
    def size(self) -> int:
        """Bytes of activations that are stored."""
        return self._store.used * self._row_bytes

    def get(self, tokens: Tokens, length: int) -> torch.Tensor:
        """Activations of a batch; what is missing is computed and kept.

        Args:
            tokens: Token ids of each record.
            length: Of the padded batch.

        Returns:
            float32 on the CPU: [n, length, hidden] with zeros behind each record, or [n, hidden] of pooled vectors;
            not-a-numbers for a record whose activations are not finite.
        """
        keys = [self._key_of(record) for record in tokens]
        self._fill(keys, tokens, None)
        index, rows, width = self._store.index, self._store.rows, self._row_bytes // self._stored.itemsize
        unstored = self._unstored(keys, tokens)
        packed = np.zeros((len(keys), 1 if self._pooled else length, width), dtype=self._stored)
        for batch_row, key in zip(packed, keys, strict=True):
            start, size = index.get(key, (0, 0))
            found = rows[start : start + size] if size else unstored[key]
            batch_row[: len(found)] = found
        activations = torch.from_numpy(packed).view(self._dtype).to(torch.float32)
        return activations.squeeze(1) if self._pooled else activations

    def fill(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> None:
        """Compute what is missing of a whole source.

        Args:
            tokens: Token ids of each record.
            progress: Called with the number of records computed since its last call.
        """
        self._fill([self._key_of(record) for record in tokens], tokens, progress)

    def broken(self, tokens: Tokens) -> NDArray[np.bool_]:
        """Of which records the activations are not finite; what is missing is computed and kept.

        Args:
            tokens: Token ids of each record.

        Returns:
            [n].
        """
        keys = [self._key_of(record) for record in tokens]
        self._fill(keys, tokens, None)
        unstored = self._unstored(keys, tokens)
        # One number tells: such a record is stored as nothing else.
        first = np.array(
            [
                unstored[key][0, 0] if key in unstored else self._store.rows[self._store.index[key][0], 0]
                for key in keys
            ],
            dtype=self._stored,
        )
        return np.asarray(torch.from_numpy(first).view(self._dtype).isnan())

    def check_finite(self, tokens: Tokens) -> None:
        """Refuse records whose activations are not finite.

        Args:
            tokens: Token ids of each record.

        Raises:
            ActivationError: There is one.
        """
        if self.broken(tokens).any():
            raise ActivationError

    def prune(self, tokens: Tokens) -> int:
        """Delete every record that is not among these.

        Args:
            tokens: Token ids of the records of the current source.

        Returns:
            How many were deleted.
        """
        kept = {self._key_of(record) for record in tokens} & self._store.index.keys()
        deleted = len(self._store.index) - len(kept)
        if deleted:
            self._store.keep(kept)
        return deleted

    def _fill(self, keys: Sequence[bytes], tokens: Tokens, progress: Callable[[int], None] | None) -> None:
        index = self._store.index
        missing = {key: record for key, record in zip(keys, tokens, strict=True) if key not in index}
        order = self._fitting(sorted(missing, key=lambda key: len(missing[key])), missing)
        for start in range(0, len(order), RECORDS_AT_ONCE):
            chunk = order[start : start + RECORDS_AT_ONCE]
            self._store.append(
                chunk, [self._packed(found) for found in self._model.prefix([missing[k] for k in chunk])]
            )
            if progress is not None:
                progress(len(chunk))

    def _fitting(self, order: list[bytes], missing: dict[bytes, NDArray[np.int32]]) -> list[bytes]:
        """As many of these as the limit has room for, from the first on."""
        if self._limit is None:
            return order
        sizes = np.cumsum([1 if self._pooled else max(1, len(missing[key])) for key in order], dtype=np.int64)
        return order[: int(np.searchsorted(sizes, self._limit // self._row_bytes - self._store.used, side="right"))]

    def _unstored(self, keys: Sequence[bytes], tokens: Tokens) -> dict[bytes, Rows]:
        """Activations of those that there was no room for."""
        if self._limit is None:
            return {}
        missing = {key: record for key, record in zip(keys, tokens, strict=True) if key not in self._store.index}
        found = self._model.prefix(list(missing.values())) if missing else []
        return {key: self._packed(activations) for key, activations in zip(missing, found, strict=True)}

    def _packed(self, activations: torch.Tensor) -> Rows:
        numbers = activations.to(self._dtype).contiguous()
        if not bool(torch.isfinite(numbers).all()):
            numbers = torch.full_like(numbers, torch.nan)
        raw: Rows = numbers.view(torch.int32 if self._stored.itemsize == 4 else torch.int16).numpy()
        return raw

    def _key_of(self, record: NDArray[np.int32]) -> bytes:
        return self._key(np.ascontiguousarray(record, dtype="<i4").tobytes())

    def _key(self, content: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(content)
        return keyed.digest()

"""Where cached activations lie: in memory, or in two private files of a tenant.

Both stores keep rows of numbers as raw integers, because numpy has no bfloat16, and an index from an opaque key to
the rows of one record. On disk the rows are one file, read through a memory map, and the index is another:

    index              a mark of (secret, space, number format), the rows' file name, then one entry for each record
    rows-HEX           the rows, appended and flushed to disk before the index names them

An index with another mark belongs to another model or another secret: it is of no use to anyone and is deleted. So a
kill or a loss of power at any moment leaves entries that are whole, and nothing that no index names.
"""

import os
import secrets
import struct
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.signedinteger]
Place = tuple[int, int]
"""First row and number of rows."""

_MARK = 32
_NAME = 37  # "rows-" and 32 hexadecimal digits
_ENTRY = struct.Struct("<32sqq")


class Store(Protocol):
    """Rows by key."""

    index: dict[bytes, Place]
    rows: Rows

    @property
    def used(self) -> int:
        """How many rows are stored."""
        ...

    def append(self, keys: Sequence[bytes], records: Sequence[Rows]) -> None:
        """Add records; they are there after a crash, or none of them."""
        ...

    def keep(self, keys: AbstractSet[bytes]) -> None:
        """Delete all other records."""
        ...


class MemoryStore:
    """Rows in memory, for simulations.

    Args:
        width: Numbers in a row.
        dtype: Integer type as wide as the number format.
    """

    def __init__(self, width: int, dtype: np.dtype[np.signedinteger]) -> None:
        self.index: dict[bytes, Place] = {}
        self.rows: Rows = np.zeros((0, width), dtype=dtype)
        self.used = 0

    def append(self, keys: Sequence[bytes], records: Sequence[Rows]) -> None:
        """See `Store`."""
        needed = self.used + sum(map(len, records))
        if needed > len(self.rows):
            larger = np.zeros((max(needed, len(self.rows) * 3 // 2), self.rows.shape[1]), dtype=self.rows.dtype)
            larger[: self.used] = self.rows[: self.used]
            self.rows = larger
        for key, record in zip(keys, records, strict=True):
            self.rows[self.used : self.used + len(record)] = record
            self.index[key] = (self.used, len(record))
            self.used += len(record)

    def keep(self, keys: AbstractSet[bytes]) -> None:
        """See `Store`."""
        kept = [(key, self.rows[start : start + size]) for key, (start, size) in self.index.items() if key in keys]
        self.index, self.rows, self.used = {}, self.rows[:0], 0
        self.append([key for key, _ in kept], [rows for _, rows in kept])


class FileStore:
    """Rows in a private folder, for tenants. One process at a time writes it.

    Args:
        folder: Made with mode 0700; the files have 0600.
        mark: 32 bytes that say whose rows these are; files with another mark are deleted.
        width: Numbers in a row.
        dtype: Integer type as wide as the number format.
    """

    def __init__(self, folder: Path, mark: bytes, width: int, dtype: np.dtype[np.signedinteger]) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._folder, self._mark, self._width, self._dtype = folder, mark, width, dtype
        self.index: dict[bytes, Place] = {}
        self._file = folder / f"rows-{secrets.token_hex(16)}"
        self._read()
        for path in folder.iterdir():
            if path not in (self._file, folder / "index"):
                path.unlink()
        self._map()

    def append(self, keys: Sequence[bytes], records: Sequence[Rows]) -> None:
        """See `Store`."""
        used = self.used
        with _private(self._file, os.O_RDWR) as file:
            # What a kill left behind the last named row is overwritten.
            os.ftruncate(file.fileno(), used * self._row_bytes)
            file.seek(0, os.SEEK_END)
            for record in records:
                file.write(np.ascontiguousarray(record, dtype=self._dtype).data)
            file.flush()
            os.fsync(file.fileno())
        entries = []
        for key, record in zip(keys, records, strict=True):
            entries.append((key, (used, len(record))))
            used += len(record)
        if self.index:
            with _private(self._folder / "index", os.O_RDWR) as file:
                os.ftruncate(file.fileno(), _MARK + _NAME + len(self.index) * _ENTRY.size)
                file.seek(0, os.SEEK_END)
                file.write(b"".join(_ENTRY.pack(key, *place) for key, place in entries))
                file.flush()
                os.fsync(file.fileno())
        else:
            self._write_index(dict(entries))
        self.index.update(entries)
        self._map()

    def keep(self, keys: AbstractSet[bytes]) -> None:
        """See `Store`."""
        index: dict[bytes, Place] = {}
        old, self._file = self._file, self._folder / f"rows-{secrets.token_hex(16)}"
        used = 0
        with _private(self._file, os.O_WRONLY) as file:
            for key, (start, size) in self.index.items():
                if key in keys:
                    file.write(np.ascontiguousarray(self.rows[start : start + size]).data)
                    index[key] = (used, size)
                    used += size
            file.flush()
            os.fsync(file.fileno())
        self._write_index(index)
        self.index = index
        old.unlink(missing_ok=True)
        self._map()

    @property
    def _row_bytes(self) -> int:
        return self._width * self._dtype.itemsize

    @property
    def used(self) -> int:
        """See `Store`."""
        return max((start + size for start, size in self.index.values()), default=0)

    def _read(self) -> None:
        try:
            content = (self._folder / "index").read_bytes()
        except FileNotFoundError:
            return
        name = content[_MARK : _MARK + _NAME].decode("ascii", "replace")
        rows_file = self._folder / name
        if content[:_MARK] != self._mark or not name.startswith("rows-") or not rows_file.is_file():
            (self._folder / "index").unlink()
            return
        self._file = rows_file
        there = rows_file.stat().st_size // self._row_bytes
        body = content[_MARK + _NAME :]
        for key, start, size in _ENTRY.iter_unpack(body[: len(body) // _ENTRY.size * _ENTRY.size]):
            if start < 0 or size <= 0 or start + size > there:
                break
            self.index[key] = (start, size)

    def _write_index(self, index: dict[bytes, Place]) -> None:
        beside = self._folder / "index.part"
        with _private(beside, os.O_WRONLY | os.O_TRUNC) as file:
            file.write(self._mark + self._file.name.encode())
            file.write(b"".join(_ENTRY.pack(key, *place) for key, place in index.items()))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._folder / "index")

    def _map(self) -> None:
        used = self.used
        if used:
            mapped = np.memmap(self._file, dtype=self._dtype, mode="r", shape=(used, self._width))
            self.rows: Rows = np.asarray(mapped)
        else:
            self.rows = np.zeros((0, self._width), dtype=self._dtype)


def _private(path: Path, flags: int) -> BinaryIO:
    descriptor = os.open(path, flags | os.O_CREAT, 0o600)
    return os.fdopen(descriptor, "rb+" if flags & os.O_RDWR else "wb")

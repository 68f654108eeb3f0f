"""The adapter's wire form: named float arrays, checked against a layout, and their files and hashes.

The names are PEFT's own state-dict names plus `head.weight` and `head.bias`, so that what travels is what
`save_pretrained` writes. Whoever receives arrays checks them here before anything else is done with them: names,
shapes, dtype, finite, largest absolute value.
"""

import hashlib
import math
import os
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedprofile.common.errors import InputError

Arrays = dict[str, NDArray[Any]]
"""Named arrays, in a fixed order."""

Layout = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype by name, in the order of the wire."""

LARGEST_VALUE = 1e4
"""No adapter that anyone trained holds a value beyond; what does is refused."""


class AdapterError(InputError):
    """Arrays that are not an adapter of the expected layout. The text names arrays and never their values."""


def check_arrays(arrays: Mapping[str, NDArray[np.generic]], layout: Layout, max_abs: float = LARGEST_VALUE) -> None:
    """Refuse arrays that are not an adapter of `layout`.

    Args:
        arrays: As received.
        layout: Of the federation card's model.
        max_abs: The largest absolute value that is accepted.

    Raises:
        AdapterError: A name is missing or unknown, a shape or dtype differs, a value is not finite or too large.
    """
    missing, unknown = sorted(layout.keys() - arrays.keys()), sorted(arrays.keys() - layout.keys())
    if missing or unknown:
        parts = [f"{len(missing)} arrays are missing, such as {missing[0]}"] if missing else []
        # An unknown name is the sender's text, so it is counted and not repeated.
        parts += [f"{len(unknown)} arrays have unknown names"] if unknown else []
        raise AdapterError(f"the adapter does not fit the card: {' and '.join(parts)}.")
    for name, (shape, dtype) in layout.items():
        array = arrays[name]
        if tuple(array.shape) != shape:
            raise AdapterError(f"the adapter does not fit the card: the shape of {name} is not {shape}.")
        if array.dtype != np.dtype(dtype):
            raise AdapterError(f"the adapter does not fit the card: the dtype of {name} is not {dtype}.")
        # One pass: the largest absolute value is not finite where any value is not.
        largest = float(np.max(np.abs(array.astype(np.float64)), initial=0.0))
        if not math.isfinite(largest):
            raise AdapterError(f"the adapter's {name} holds values that are not finite.")
        if largest > max_abs:
            raise AdapterError(f"the adapter's {name} holds values above {max_abs:g}.")


def flatten(arrays: Mapping[str, NDArray[np.generic]], layout: Layout) -> NDArray[np.float64]:
    """All values as one vector.

    Args:
        arrays: Of `layout`.
        layout: Gives the order.

    Returns:
        float64 [total size].
    """
    if not layout:
        return np.zeros(0)
    return np.concatenate([np.ravel(arrays[name]).astype(np.float64) for name in layout])


def unflatten(values: NDArray[np.float64], layout: Layout) -> Arrays:
    """The reverse of `flatten`, rounded to the layout's dtypes.

    Args:
        values: [total size].
        layout: Names, shapes and dtypes.

    Returns:
        The arrays in the layout's order.

    Raises:
        ValueError: The size is not the layout's.
    """
    sizes = [math.prod(shape) for shape, _ in layout.values()]
    if values.shape != (sum(sizes),):
        raise ValueError(f"the layout holds {sum(sizes)} values, got {values.shape}")
    parts = np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
    return {
        name: part.reshape(shape).astype(dtype)
        for (name, (shape, dtype)), part in zip(layout.items(), parts, strict=True)
    }


def update_norm(arrays: Mapping[str, NDArray[np.generic]]) -> float:
    """The L2 norm over all arrays together, in float64; infinite or NaN where a value is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(sum(float(np.sum(np.square(array.astype(np.float64)))) for array in arrays.values()))


def scale_to_norm(arrays: Mapping[str, NDArray[np.generic]], largest: float) -> Arrays:
    """Scale down to an L2 norm where the arrays are above it.

    Args:
        arrays: Finite.
        largest: The bound, up to the rounding of the arrays' dtype.

    Returns:
        New arrays; the same values where the norm is within the bound.
    """
    norm = update_norm(arrays)
    if norm <= largest:
        return {name: array.copy() for name, array in arrays.items()}
    factor = largest / norm
    return {name: (array.astype(np.float64) * factor).astype(array.dtype) for name, array in arrays.items()}


def arrays_hash(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """SHA-256 of a canonical form: by sorted name, with dtypes and shapes, little-endian.

    Args:
        arrays: Any.

    Returns:
        64 hexadecimal digits; independent of the order and memory layout of the arrays.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        dtype_name, little_endian = _canonical(array.dtype)
        for part in (name.encode(), dtype_name, struct.pack(f"<{array.ndim}q", *array.shape)):
            digest.update(struct.pack("<q", len(part)) + part)
        digest.update(np.asarray(array, dtype=little_endian).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _canonical(dtype: np.dtype[np.generic]) -> tuple[bytes, np.dtype[np.generic]]:
    """A dtype's name without its byte order, and the dtype in little-endian; numpy takes long over both."""
    return str(np.dtype(dtype.name)).encode(), dtype.newbyteorder("<")


def write_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]], mode: int = 0o600) -> None:
    """Write a safetensors file as one step: after a kill there is the old file or the new one.

    Args:
        path: The file; its folder must exist.
        arrays: What it holds.
        mode: Permissions, set before any content is written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    content = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_arrays(path: Path) -> Arrays:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Its arrays, by sorted name; `check_arrays` says whether they are an adapter.

    Raises:
        AdapterError: The file is missing or not safetensors.
    """
    try:
        found = load(path.read_bytes())
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror}).") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}: is not a safetensors file of plain arrays.") from error
    return {name: found[name] for name in sorted(found)}

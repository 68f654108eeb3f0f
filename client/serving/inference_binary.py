"""Tensors as bytes, of the protocol's binary extension and of gRPC: BYTES elements each with a 4-byte length."""

import struct
from collections.abc import Sequence

from fedprofile.client.given import GivenError, Wrong
from fedprofile.client.serving.inference import INPUT, Tensor

_LENGTH = struct.Struct("<I")


def packed(tensor: Tensor) -> bytes:
    """A tensor's elements in order, little-endian."""
    if tensor.datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(element)) + element for element in tensor.values.ravel())
    return tensor.values.astype("<f8").tobytes()


def unpacked(data: bytes) -> list[bytes]:
    """The elements of a BYTES tensor.

    Args:
        data: See `packed`.

    Returns:
        The elements.

    Raises:
        GivenError: The lengths do not add up.
    """
    found: list[bytes] = []
    place = 0
    while place < len(data):
        start = place + _LENGTH.size
        if start > len(data) or (end := start + _LENGTH.unpack_from(data, place)[0]) > len(data):
            raise GivenError([Wrong(f"inputs.{INPUT}", "holds elements whose lengths do not add up")])
        found.append(data[start:end])
        place = end
    return found


def check_count(elements: Sequence[bytes], count: int) -> Sequence[bytes]:
    """Refuse elements that are not as many as their tensor's shape says.

    Raises:
        GivenError: They are not.
    """
    if len(elements) != count:
        raise GivenError([Wrong(f"inputs.{INPUT}", f"holds {len(elements)} elements where its shape says {count}")])
    return elements

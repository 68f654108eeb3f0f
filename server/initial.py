"""The adapter that round 1 starts from.

It needs the model, and the model needs torch, which a running server has no other use for. So it is computed by a
process of its own, once, and kept in the server's state.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

import safetensors

from fedprofile.common.errors import FedprofileError, InputError
from fedprofile.common.messages import Arrays
from fedprofile.server.checkpoint import dump_arrays, load_arrays
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.files import write_atomically


def initial_adapter(directory: ServerDirectory) -> Arrays:
    """Read the initial adapter, after computing it where it is not there.

    Args:
        directory: The server's.

    Returns:
        Its arrays.

    Raises:
        InputError: The base model is missing or differs from the card, or the card's initial adapter does.
    """
    card_hash = directory.card().hash
    known = _read(directory.initial_adapter, card_hash)
    if known is not None:
        return known
    command = [sys.executable, "-m", "fedprofile.server.initial", str(directory.root)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    computed = _read(directory.initial_adapter, card_hash) if done.returncode == 0 else None
    if computed is None:
        sentence = done.stderr.strip().splitlines()[-1:] or ["the process that computes it ended without a word."]
        raise InputError(f"the initial adapter cannot be computed: {sentence[0]}")
    return computed


def compute(directory: ServerDirectory) -> Arrays:
    """Build the model and take its initial arrays.

    Args:
        directory: The server's.

    Returns:
        The arrays.

    Raises:
        InputError: See `initial_adapter`.
    """
    from fedprofile.common.modeling.base import load_base, resolve_base
    from fedprofile.common.modeling.profile_model import ProfileModel

    card = directory.card()
    model = ProfileModel(card, *load_base(resolve_base(card.base, directory.settings().base)))
    if card.initial_adapter is None:
        return dict(model.initial_arrays())
    given = directory.root / "initial.safetensors"
    try:
        found = hashlib.sha256(given.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{given}: cannot be read ({error.strerror}); the card asks for it.") from error
    if found != card.initial_adapter:
        raise InputError(f"{given}: expected SHA-256 {card.initial_adapter}, found {found}; put the right file there.")
    model.set_arrays(load_arrays(given)[0])
    return dict(model.get_arrays())


def _read(path: Path, card_hash: str) -> Arrays | None:
    if not path.exists():
        return None
    try:
        arrays, metadata = load_arrays(path)
    except (OSError, safetensors.SafetensorError):
        return None
    return {name: arrays[name] for name in metadata["order"].split()} if metadata["card_hash"] == card_hash else None


def main(root: str) -> int:
    """The process of its own."""
    directory = ServerDirectory(Path(root))
    try:
        arrays = compute(directory)
    except FedprofileError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return error.exit_code
    metadata = {"card_hash": directory.card().hash, "order": " ".join(arrays)}
    write_atomically(directory.initial_adapter, dump_arrays(arrays, metadata))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))

"""Files that a person names for a command to write: `--output`, `--export` and `--record-egress`.

A slip of the keyboard must not cost a source or a ledger. So a file that is there is never written over, no folder is
made, and no name is taken that the client needs itself: a ledger with what SQLite keeps beside it, the registry, a
source, or a file of the tenant's directory, there or not.
"""

import os
from pathlib import Path

from fedprofile.client.databases import sqlite_file
from fedprofile.client.directory import TenantDirectory, populations_folder
from fedprofile.common.errors import ConfigError
from fedprofile.common.tenant import FileSource, TenantFile

_BESIDE_A_LEDGER = ("", "-wal", "-shm", "-journal", ".lock")


def refuse_own_file(
    path: Path, option: str, directory: TenantDirectory, *, ledger: Path, tenant: TenantFile | None = None
) -> None:
    """Refuse a name that the client needs itself.

    Args:
        path: As a person typed it.
        option: What it was typed for, such as `--output`.
        directory: The tenant's.
        ledger: Where the population's ledger is, absolute.
        tenant: Says where the sources are, where it is known.

    Raises:
        ConfigError: It is one.
    """
    try:
        place = path.resolve()
    except (OSError, RuntimeError):
        raise ConfigError(f"{option} {path}: leads round in a circle of links; give another name.") from None
    sources = [source for source in (tenant.source, tenant.events) if source is not None] if tenant else []
    for source in sources:
        file = directory.root / source.path if isinstance(source, FileSource) else sqlite_file(source, directory.root)
        if file is not None and place == file.resolve():
            raise ConfigError(f"{option} {path}: is a source of your data; give another name.")
    names = {ledger.with_name(ledger.name + suffix) for suffix in _BESIDE_A_LEDGER}
    if place in names or place.is_relative_to(populations_folder().resolve()):
        raise ConfigError(f"{option} {path}: belongs to a ledger; give another name.")
    if directory.keeps(place):
        raise ConfigError(f"{option} {path}: is a file of the tenant's directory; give another name.")


def require_new(path: Path, option: str) -> None:
    """Refuse a file that is there or has no folder, before the work that is to be written into it.

    Args:
        path: As a person typed it.
        option: What it was typed for.

    Raises:
        ConfigError: It cannot be made.
    """
    if os.path.lexists(path):
        raise _taken(path, option)
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: {path.parent} is no folder; make it first, or give another name.")


def write_new(path: Path, data: bytes, option: str) -> None:
    """Write a file that only its owner can read, where there is none.

    Args:
        path: As a person typed it.
        data: The content.
        option: What it was typed for.

    Raises:
        ConfigError: It is there already, or cannot be written; then nothing is left of it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise _taken(path, option) from None
    except OSError as error:
        raise _unwritable(path, option, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, option, error) from error
        raise


def _taken(path: Path, option: str) -> ConfigError:
    return ConfigError(f"{option} {path}: is there already; choose another name, or remove it first.")


def _unwritable(path: Path, option: str, error: OSError) -> ConfigError:
    return ConfigError(f"{option} {path}: cannot be written ({error.strerror}); give another name.")

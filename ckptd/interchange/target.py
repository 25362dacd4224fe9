"""Files that are there whole or not at all: written under a temporary name beside the final one, synced, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd.errors import ConfigError, ResourceError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; it becomes ``path`` when the block ends, and is gone when it raises.

    Raises ConfigError when something is at ``path``, ResourceError when the disk refuses.
    """
    with _beside(path) as temporary:
        yield temporary
        sync(temporary)
        try:
            os.link(temporary, path)  # unlike a rename it never replaces what another process has put there
        except FileExistsError:
            raise _taken(path) from None


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Give a directory to write files into; it becomes ``path`` when the block ends. Else as `whole_file`."""
    with _beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        try:
            os.rename(temporary, path)
        except OSError:
            if path.exists():
                raise _taken(path) from None
            raise


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    path = path.absolute()
    if path.exists() or path.is_symlink():
        raise _taken(path)
    if not path.parent.is_dir():
        raise ConfigError(f"there is no directory to write to; make it first path={path.parent}")
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(8)}.partial"
    try:
        yield temporary
        sync(path.parent)
    except OSError as error:
        raise ResourceError(f"can't write the export: {error.strerror} path={path}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have a file's bytes, or a directory's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"something is there already, and an export replaces nothing; name another place path={path}")

"""A folder of files, on this machine or at any fsspec URL; files appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec

from student_trainer.store.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has no flock; two writers of one index are then the user's to avoid.
    fcntl = None  # type: ignore[assignment]

_LOCAL_PROTOCOLS = ("file", "local")
_DIGEST_CHARACTERS = 16


class StoreFolder:
    """Reads and publishes files by name.

    Remote files that are read as a whole are copied to `cache_folder` once, and opened there by
    memory map like local ones. A context manager: without a cache folder of the caller's, the
    copies go with it.
    """

    def __init__(self, url: str | os.PathLike[str], *, cache_folder: Path | None = None) -> None:
        """Prepares to use it; it need not be there.

        Raises:
            StoreError: no file system is known for the URL, or its package is not installed.
        """
        self.url = os.fspath(url)
        self._fs, self._root = _open_file_system(self.url)
        protocol = self._fs.protocol
        protocols = (protocol,) if isinstance(protocol, str) else protocol
        self.is_local = any(name in _LOCAL_PROTOCOLS for name in protocols)
        self._cache_folder = cache_folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "StoreFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the copies that nobody asked to keep."""
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def names(self) -> list[str]:
        """The files of the folder, sorted; hidden ones, such as unfinished files, left out."""
        self._fs.invalidate_cache(self._root)
        if not self._fs.isdir(self._root):
            return []
        paths = self._fs.ls(self._root, detail=False)
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(name for name in names if name and not name.startswith("."))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        self._fs.invalidate_cache(self._root)
        return int(self._fs.size(self._path(name)))

    def read(self, name: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: it is not there.
        """
        content: bytes = self._fs.cat_file(self._path(name))
        return content

    def publish(self, name: str, content: bytes, *, is_locked: bool = True) -> None:
        """Writes a file under a hidden name, has it on the disk, and renames it.

        Args:
            is_locked: no other process writes this file now. The hidden name is then always the
                same, so that what a killed process leaves is written over.
        """
        hidden = f".{name}.partial" if is_locked else f".{name}.{uuid.uuid4().hex}.partial"
        if not self.is_local:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(self._path(hidden), content)
            self._fs.mv(self._path(hidden), self._path(name))
            return
        folder = Path(self._root)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / hidden).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        (folder / hidden).replace(folder / name)
        _sync_folder(folder)

    def rename(self, name: str, new_name: str) -> None:
        """Gives a file another name."""
        self._fs.mv(self._path(name), self._path(new_name))

    def remove(self, name: str) -> None:
        """Deletes a file."""
        self._fs.rm_file(self._path(name))

    def copy_from(
        self, other: "StoreFolder", name: str, *, new_name: str, is_locked: bool = True
    ) -> None:
        """Copies a file of another folder; see `publish`."""
        self.publish(new_name, other.read(name), is_locked=is_locked)

    def local_path(self, name: str, *, sha256: str = "") -> Path:
        """Where the file can be opened by memory map; copies a remote one first.

        Args:
            sha256: of its content, where its name does not say it: the cache may have a file of the
                same name from another store, or from an earlier one at this place.
        """
        if self.is_local:
            return Path(self._root) / name
        path = self._cache() / f"{sha256[:_DIGEST_CHARACTERS]}{name}"
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            # A file that is gone is missing here too, for the one who opens it to say so.
            with contextlib.suppress(FileNotFoundError):
                with self._fs.open(self._path(name), "rb") as source, partial.open("wb") as target:
                    shutil.copyfileobj(source, target, length=1 << 20)
                partial.replace(path)
        return path

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Holds what only one process may hold; freed however the process ends.

        On remote file systems there is nothing to hold: there, two writers of the same shard are
        the user's to avoid.

        Raises:
            StoreError: another process holds it.
        """
        if not self.is_local or fcntl is None:
            yield
            return
        folder = Path(self._root)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"another process writes {name} of {self.url}; wait for it, or give each "
                    "worker its own --shard i/n"
                ) from None
            yield

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _cache(self) -> Path:
        if self._cache_folder is not None:
            self._cache_folder.mkdir(parents=True, exist_ok=True)
            return self._cache_folder
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="target_store_")
        return Path(self._scratch.name)


def _open_file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        # fsspec's own words name the package, such as "Install s3fs to access S3".
        raise StoreError(
            f"the store {url} cannot be reached: {error}; install that package with pip, or name a "
            "folder"
        ) from error
    except ValueError as error:
        raise StoreError(
            f"the store {url} cannot be reached: {error}; name a folder, or a URL that "
            "fsspec knows, such as s3://bucket/folder"
        ) from error
    return fs, root


def _sync_folder(folder: Path) -> None:
    """Has the rename itself on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

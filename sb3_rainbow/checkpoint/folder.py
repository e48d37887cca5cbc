"""
Checkpoints as folders that are there as a whole or not at all.

A checkpoint is written under a name that no reader takes for one, its manifest last, every file and the folder flushed to the
disk, and then renamed. Readers take the newest whose manifest is true to its files.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import threading
import uuid
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 4
#: Saving so many bytes shows its progress
PROGRESS_FROM = 2**30
_PREFIX, _TEMPORARY = "step_", ".writing_"
#: Held from a look at the newest checkpoint until the next one is there
WRITER = threading.Lock()


class CorruptCheckpointError(ValueError):
    """A checkpoint that is not what its manifest says; the text names the file."""


def checkpoints(folder: Path) -> list[Path]:
    """
    :param folder: where checkpoints are kept
    :return: those that are complete by their names, oldest first; whether they are intact is not looked at
    """
    # By number: after a step back to an older checkpoint, what has more steps may be older
    paths = [path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and _number(path)]
    return sorted(paths, key=_number)


def _number(path: Path) -> int:
    number = path.name.rsplit("_", 1)[1]
    return int(number) if number.isdigit() else 0


@contextlib.contextmanager
def writing(folder: Path, step: int, keep: int) -> Iterator[tuple[Path, Path]]:
    """
    Write a checkpoint: fill the first folder that this yields. Without an error it becomes the second, the newest checkpoint;
    with one it is removed, and what was there before stays.

    :param folder: where checkpoints are kept; made if missing. One process at a time may write
    :param step: environment steps so far, part of the name
    :param keep: how many are kept, this one included
    :return: context that gives the two folders
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    number = 1 + max(map(_number, checkpoints(folder)), default=0)
    final = folder / f"{_PREFIX}{step:012d}_{number:06d}"
    temporary = folder / f"{_TEMPORARY}{number}_{uuid.uuid4().hex}"  # if two write all the same, one fails: they do not mix
    temporary.mkdir()
    try:
        yield temporary, final
        flush(temporary)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_entries(folder)
    for path in checkpoints(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def write_manifest(path: Path, content: dict[str, Any], reused: dict[str, dict[str, Any]]) -> None:
    """
    Write the manifest of a checkpoint, after all its other files.

    :param path: the checkpoint's folder
    :param content: what it says beside the files
    :param reused: entries of files that are links to those of an earlier checkpoint: they are not read again
    """
    files = {
        file.name: reused.get(file.name) or {"size": file.stat().st_size, "sha256": sha256(file)} for file in path.iterdir()
    }
    manifest = {"format": FORMAT, **content, "files": files}
    (path / MANIFEST).write_text(json.dumps({"sha256": _digest_of(manifest), **manifest}, indent=1))


def read_manifest(path: Path) -> dict[str, Any]:
    """
    :param path: a checkpoint
    :return: its manifest
    :raises CorruptCheckpointError: if it cannot be read
    :raises ValueError: if another version of sb3-rainbow has written it in another format
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        digest = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptCheckpointError(f"{file}: not a manifest ({error!r})") from error
    if digest != _digest_of(manifest):
        raise CorruptCheckpointError(f"{file}: its content is not what was written")
    if manifest["format"] != FORMAT:
        # Not corrupt: nobody is to take an older one instead, or to remove it
        raise ValueError(f"{file}: format {manifest['format']!r}, this version of sb3-rainbow reads and writes {FORMAT}")
    return manifest


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> None:
    """
    :param path: a checkpoint
    :raises CorruptCheckpointError: if a file is missing, of another size or of another content; it names the file
    :raises ValueError: if it has another version's format
    """
    for name, entry in read_manifest(path)["files"].items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise CorruptCheckpointError(f"{file}: missing")
        try:
            size, digest = file.stat().st_size, sha256(file)
        except OSError as error:  # its writer may be removing it
            raise CorruptCheckpointError(f"{file}: cannot be read ({error})") from error
        if size != entry["size"]:
            raise CorruptCheckpointError(f"{file}: {size} bytes, {entry['size']} were written")
        if digest != entry["sha256"]:
            raise CorruptCheckpointError(f"{file}: its content is not what was written")


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """
    Find the newest intact checkpoint. A warning names what is wrong with newer ones.

    :param folder: where checkpoints are kept
    :return: its path; None if there is none
    :raises ValueError: if another version of sb3-rainbow has written the newest in another format
    """
    found: list[Path] = []
    while found != (found := checkpoints(Path(folder))):  # again, if all were replaced while they were read
        for path in reversed(found):
            try:
                verify(path)
            except CorruptCheckpointError as error:
                warnings.warn(f"{error}. The checkpoint before it is taken", RuntimeWarning, stacklevel=2)
            else:
                return path
    return None


def link(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """
    Let two checkpoints share a file, which is never changed; or copy it, where the file system has no links.

    :param old: the file
    :param new: its other name
    """
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def newest_manifest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """
    :param folder: where checkpoints are kept
    :return: the newest checkpoint and its manifest; None if there is none, or it cannot be read
    """
    for path in checkpoints(folder)[-1:]:
        with contextlib.suppress(CorruptCheckpointError):
            return path, read_manifest(path)
    return None


def sha256(file: Path) -> str:
    """
    :param file: any file
    :return: digest of its content
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def with_progress(arrays: Mapping[str, Any], unchanged: Container[str]) -> Iterable[tuple[str, Any]]:
    """
    :param arrays: of a checkpoint, by name
    :param unchanged: names of those that need not be written
    :return: arrays and their names, with a progress bar if many bytes are to be written and tqdm is there
    """
    total = sum(array.nbytes for name, array in arrays.items() if name not in unchanged)
    if total < PROGRESS_FROM or importlib.util.find_spec("tqdm") is None:
        return arrays.items()
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(arrays.items(), desc=f"saving {total / 2**30:.1f} GiB", leave=False)


def flush(path: Path) -> None:
    """
    Have the system write a file, or a folder with all that is in it, to the disk.

    :param path: of either
    """
    if path.is_dir():
        for entry in path.iterdir():
            flush(entry)
        flush_entries(path)
    else:
        _fsync(path, os.O_RDWR)


def flush_entries(folder: Path) -> None:
    """
    Have the system write a folder's list of entries to the disk: a rename is lost with the machine before that.

    :param folder: whose entries have changed
    """
    if os.name != "nt":  # Windows opens no folders
        _fsync(folder, os.O_RDONLY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

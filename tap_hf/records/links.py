"""Nothing is read or written through a link in a run directory: it may be somebody else's, and lead anywhere.

Checked when a run's record is read, and when its lock is taken. Another process of this user that puts links there in
the meantime could do worse anyway.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from tap_hf.errors import RunDirectoryError
from tap_hf.event_log import EVENTS_FILE

TRAINER_FOLDER = "trainer"
"""What integrations of the Trainer write, links among it; this package reads nothing there."""


LOCK_FILE = "lock"
_WRITTEN = (LOCK_FILE, f"{LOCK_FILE}.pid", EVENTS_FILE)  # in their place; other files are replaced
_OF_FILES = (".json", ".jsonl", ".safetensors", ".pid")


def refuse_links(folder: Path) -> None:
    """Raise unless all below a run directory, which may be a link itself, are files and folders, each in its place.

    Raises:
        RunDirectoryError: naming the link, pipe, socket or device; or a file that is written in its place and has
            several names.
    """
    folders, written = [folder], {folder / name for name in _WRITTEN}
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:  # a running run deletes files
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                kind, path = stat.S_IFMT(status.st_mode), Path(entry.path)
                if path in written and kind == stat.S_IFREG and status.st_nlink > 1:
                    raise RunDirectoryError(
                        f"{path} is written in its place, and the file has another name too. Replace it by a copy."
                    )
                if kind not in (stat.S_IFREG, stat.S_IFDIR):
                    what = "a link" if kind == stat.S_IFLNK else "neither a file nor a folder"
                    raise RunDirectoryError(
                        f"{path} is {what}, which may lead out of {folder}; expected files and folders. Replace it by "
                        "a copy if you made it; do not trust the folder if you did not."
                    )
                if kind == stat.S_IFDIR and (path.suffix in _OF_FILES or path.name == LOCK_FILE):
                    raise RunDirectoryError(f"{path} is a folder, expected a file. Restore it from a copy.")
                if kind == stat.S_IFDIR and path != folder / TRAINER_FOLDER:
                    folders.append(path)

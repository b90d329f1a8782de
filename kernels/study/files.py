"""Writing a file so that a reader finds the old content or the new, never a part.

As minidl.files does for the rooms above: kernels import nothing of theirs.
"""

import os
import tempfile
from pathlib import Path


def write_text(path, text: str) -> None:
    """Replace the content of `path` by `text`, in UTF-8, atomically. OSError where it cannot."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

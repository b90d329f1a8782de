"""Files are written whole or not at all, and nothing but files is replaced."""

import os
import stat

import pytest

from kernels.files import atomic_path, write_text


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file"
    write_text(path, "first")
    write_text(path, "second")
    assert path.read_text() == "second"
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "second" and os.listdir(path.parent) == ["file"]


def test_a_link_is_followed(tmp_path):
    target, link = tmp_path / "below" / "target", tmp_path / "link"
    link.symlink_to(target)
    write_text(link, "text")
    assert link.is_symlink() and target.read_text() == "text"
    link.unlink()
    link.symlink_to(link)  # to itself: there is nothing to follow
    write_text(link, "text")
    assert not link.is_symlink() and link.read_text() == "text"


def test_what_is_no_file_stays(tmp_path):
    """As root one could replace a device by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="Not a regular file.*pipe"):
        write_text(pipe, "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(IsADirectoryError, match="Not a regular file"):
        write_text(tmp_path, "text")
    assert os.listdir(tmp_path) == ["pipe"]


def test_errors_name_the_path_that_was_given(tmp_path):
    path = tmp_path / ("x" * 250)  # there is no room for the temporary name
    with pytest.raises(OSError, match="too long") as caught:
        write_text(path, "text")
    assert caught.value.filename == str(path)

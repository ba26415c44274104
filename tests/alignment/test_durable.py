"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mixlogit_align.alignment.durable import WholeFolder, replacing
from mixlogit_align.alignment.parallel import World
from mixlogit_align.errors import MixlogitError


def write(folder: Path, text: str, error: BaseException | None = None) -> None:
    whole = WholeFolder(folder, "writing", World())
    with whole.step():
        (whole.begin() / "first").write_text(text)
    with whole.step():
        (whole.partial / "second").write_text(text)
        if error is not None:
            raise error
        whole.finish()


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_replaced_by_one_that_is_whole(tmp_path):
    write(tmp_path / "new" / "folder", "old")
    write(tmp_path / "new" / "folder", "new")
    assert content(tmp_path) == {"new/folder/first": "new", "new/folder/second": "new"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [OSError("no room"), SafetensorError("no room")])
def test_what_cannot_be_written_leaves_what_stood_there(tmp_path, error):
    write(tmp_path / "folder", "old")
    with pytest.raises(MixlogitError, match=r"writing: got \w+: no room; expected room for it"):
        write(tmp_path / "folder", "new", error)
    assert content(tmp_path) == {"folder/first": "old", "folder/second": "old"}


def test_a_kill_while_the_old_folder_is_removed_leaves_the_new_one(tmp_path, monkeypatch):
    write(tmp_path / "folder", "old")
    remove = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if (path / "second").exists():
            (path / "second").unlink()
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "folder", "new")
    monkeypatch.undo()
    assert content(tmp_path / "folder") == {"first": "new", "second": "new"}
    write(tmp_path / "folder", "newer")
    assert content(tmp_path) == {"folder/first": "newer", "folder/second": "newer"}


def test_a_file_is_replaced_when_all_is_written(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
        assert not path.exists()
    assert content(tmp_path) == {"file": "first"}
    with suppress(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert content(tmp_path) == {"file": "first"}

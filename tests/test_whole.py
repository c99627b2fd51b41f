"""Files and folders are there as a whole or not at all."""

import contextlib
import os
import threading

import pytest

from backbones import whole


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        with whole.file(tmp_path / "a") as part:
            part.chmod(0o600)  # as safetensors does
            part.write_bytes(b"whole")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]


@pytest.mark.parametrize("writer", [whole.file, whole.folder])
def test_what_fails_leaves_no_trace(tmp_path, writer):
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "a"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_stays_until_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with contextlib.suppress(ZeroDivisionError), whole.file(path) as part:
        part.write_bytes(b"ha")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    with whole.file(path) as part:
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for name in ("above/new", "empty", "full"):
        if name == "empty":
            (tmp_path / name).mkdir()
        try:
            with whole.folder(tmp_path / name) as part:
                (part / "b").touch()
        except OSError:
            assert name == "full"
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["above/new/b", "empty/b", "full/a"]


def test_a_folder_behind_a_link_is_made_where_the_link_points(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with whole.folder(tmp_path / "link") as part:
        (part / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").is_file()


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    path, failed = tmp_path / "a", []

    def write(content):
        try:
            for _ in range(50):
                with whole.file(path) as part:
                    part.write_bytes(content)
                assert len(set(path.read_bytes())) == 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(bytes([i]) * 10000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_killed_processes_left_goes_once_it_is_old(tmp_path):
    for name, age in (("old", 601), ("new", 500)):
        (tmp_path / f".dosde-{name}.part").touch()
        inside = tmp_path / f".dosde-{name}-folder.part" / "a"
        inside.parent.mkdir()
        inside.touch()
        for path in (inside, inside.parent, tmp_path / f".dosde-{name}.part"):
            then = path.stat().st_mtime - age
            os.utime(path, (then, then))
    whole.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".dosde-new-folder.part", ".dosde-new.part"]


def test_check_leaves_no_trace_and_refuses_what_cannot_be_written(tmp_path):
    whole.check(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    for path in (tmp_path / "none" / "a", tmp_path / ("n" * 300)):
        with pytest.raises(OSError, match=r"No such|too long"):
            whole.check(path)

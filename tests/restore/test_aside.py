"""A file is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipweather_fast.restore import aside
from clipweather_fast.restore.aside import written_aside


@pytest.fixture(params=["nameless", "named"])
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files that have no name, and as on a file system that has none."""
    if request.param == "named":
        monkeypatch.setattr(aside, "_NO_NAMELESS_FILES", (errno.EOPNOTSUPP, errno.EINVAL))
        monkeypatch.setattr(os, "O_TMPFILE", -1, raising=False)
        real = os.open

        def refuse(path: str, flags: int, mode: int = 0o777) -> int:
            if flags < 0:
                raise OSError(errno.EOPNOTSUPP, "no nameless files here")
            return real(path, flags, mode)

        monkeypatch.setattr(os, "open", refuse)


@pytest.mark.usefixtures("_kind")
def test_it_replaces_the_target_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "a picture\nof rain.png"
    target.write_bytes(b"before")
    with written_aside(target) as file:
        file.write(b"after")
        file.flush()
        assert target.read_bytes() == b"before"
    assert target.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("_kind")
def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"before")

    def fail() -> None:
        with written_aside(target) as file:
            file.write(b"half")
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("_kind")
def test_the_users_mask_decides_who_may_read_it(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with written_aside(tmp_path / "a.png") as file:
            file.write(b"x")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("_kind")
def test_a_name_as_long_as_a_file_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("ж" * 127)
    with written_aside(target) as file:
        file.write(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.usefixtures("_kind")
def test_errors_name_the_target(tmp_path: Path) -> None:
    def write(target: Path) -> None:
        with written_aside(target) as file:
            file.write(b"x")

    (tmp_path / "folder.png").mkdir()
    for target in (tmp_path / "folder.png", tmp_path / "missing" / "a.png"):
        with pytest.raises(OSError, match=r"(directory|file)") as found:
            write(target)
        assert found.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_link_is_replaced_and_its_file_stays(tmp_path: Path) -> None:
    (tmp_path / "original.png").write_bytes(b"original")
    (tmp_path / "link.png").symlink_to("original.png")
    with written_aside(tmp_path / "link.png") as file:
        file.write(b"new")
    assert (tmp_path / "original.png").read_bytes() == b"original"
    assert (tmp_path / "link.png").read_bytes() == b"new"


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from clipweather_fast.restore.aside import written_aside\n"
        "with written_aside(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "a.png"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    left = list(tmp_path.iterdir())
    assert left == [] or [path.suffix for path in left] == [".part"]
    assert not target.exists()

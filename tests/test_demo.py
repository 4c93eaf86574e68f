"""The demonstration: what it checks before it times, what it prints, what it refuses."""

from pathlib import Path

import pytest
import torch

from clipweather_fast import demo


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SECONDS_PER_ROW", 0.0)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image").effect_noise((72, 56), 60).convert("RGB")
    image.save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_the_example_is_found() -> None:
    assert demo._picture(None).name == "coffee.jpg"


def test_the_table_says_what_was_run(quick: None, picture: Path) -> None:
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    result = demo.run(picture, threads=1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert result.threads == 1
    assert len(result.measurements) == 6
    lines = str(result).splitlines()
    assert lines[0] == "noise.png, 72 x 56: 252 tokens, 64 channels"
    assert "1 thread" in lines[1]
    for measurement in result.measurements:
        assert measurement.rounds >= 3
        (row,) = [line for line in lines if line.startswith(measurement.name + "  ")]
        assert row.endswith(f"{measurement.plain / measurement.fused:.1f} x")


def test_any_picture_will_do(quick: None, picture: Path) -> None:
    result = demo.run(picture)
    assert (result.picture, result.width, result.height) == ("noise.png", 72, 56)
    assert result.tokens == 18 * 14
    assert 0 <= result.largest_difference <= demo.TOLERANCE


def test_nothing_is_timed_when_the_results_differ(
    quick: None, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"^demo: SARFFN: fused and plain results differ by "):
        demo.run(picture)


def test_wrong_arguments_are_named(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^demo: there is no picture '.*nowhere.jpg'$"):
        demo.run(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"^demo: threads must be a positive number, got 0$"):
        demo.run(picture, threads=0)
    tiny = tmp_path / "tiny.png"
    pytest.importorskip("PIL.Image").new("RGB", (40, 20)).save(tiny)
    with pytest.raises(ValueError, match=r"must be at least 32 x 32, got 40 x 20$"):
        demo.run(tiny)

"""The examples run, and show what they say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def examples() -> ModuleType:
    path = EXAMPLES / "degraded_photographs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("weather", ["snow", "rain", "haze", "drops"])
def test_weather_changes_a_photograph_but_leaves_it_recognisable(
    weather: str, examples: ModuleType
) -> None:
    photograph = np.asarray(Image.open(EXAMPLES / "coffee.jpg"), np.float32) / 255
    seen = examples.degraded(photograph, weather)
    assert seen.shape == photograph.shape
    assert seen.dtype == np.float32
    assert seen.min() >= 0
    assert seen.max() <= 1
    error = float(np.mean((seen - photograph) ** 2))
    assert 9 < -10 * np.log10(error) < 30
    assert np.corrcoef(seen.ravel(), photograph.ravel())[0, 1] > 0.5
    np.testing.assert_array_equal(seen, examples.degraded(photograph, weather))
    assert (seen != examples.degraded(photograph, weather, seed=1)).any()
    assert examples.degraded(photograph[:1, :1], weather).shape == (1, 1, 3)


def test_the_script_writes_each_weather(tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "degraded_photographs.py")]
    done = subprocess.run([*script, str(tmp_path / "out"), str(EXAMPLES / "coffee.jpg")])
    assert done.returncode == 0
    names = ["coffee", "coffee_drops", "coffee_haze", "coffee_rain", "coffee_snow"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{n}.png" for n in names]
    helped = subprocess.run(script, capture_output=True, text=True)
    assert helped.returncode == 1
    assert "FOLDER" in helped.stderr

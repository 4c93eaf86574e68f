"""What a user without open_clip, timm, or a torchvision that fits, reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from child import environment

#: As PyTorch's own torchvision fails beside a torch that it was not built for.
BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")\n'

PROBE = """
import sys
from clipweather_fast.clip import (
    EncoderUnavailable, Teacher, WeatherClassifier, build_prior_encoder, build_text_encoder
)
import torch

def say(build, *arguments):
    try:
        build(*arguments)
    except EncoderUnavailable as error:
        print(error)

heavy = {"open_clip", "timm", "torchvision", "transformers", "huggingface_hub"} & set(sys.modules)
print("loaded:", *heavy)

sys.modules["open_clip"] = None
say(build_prior_encoder, "clip:ViT-B-32-quickgelu", "random")
del sys.modules["open_clip"]
sys.modules["timm"] = None
say(build_prior_encoder, "imagenet", "random")
del sys.modules["timm"]
for attempt in range(2):
    say(build_prior_encoder, "clip:ViT-B-32-quickgelu", "random")
    say(build_text_encoder, "clip:ViT-B-32-quickgelu", "random")
    say(Teacher, "random")
    say(build_prior_encoder, "imagenet", "random")
encoder = build_prior_encoder("convolutional")
print(*WeatherClassifier()(encoder(torch.rand(1, 3, 4, 4))).shape)
"""


def test_missing_and_broken_packages_are_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(BROKEN)
    variables = environment()
    variables["PYTHONPATH"] = f"{tmp_path}:{variables['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    loaded, *said, shape = done.stdout.splitlines()
    assert loaded == "loaded:"
    assert shape == "1 3"
    kinds = ["clip:ViT-B-32-quickgelu", "clip:ViT-B-32-quickgelu", "teacher RN50x4-quickgelu"]
    assert said[:2] == [
        f"{kinds[0]} needs open_clip, which is not installed: pip install open_clip_torch",
        "imagenet needs timm, which is not installed: pip install timm",
    ]
    assert len(said) == 10
    for line, who in zip(said[2:], 2 * [*kinds, "imagenet"], strict=True):
        package = "timm" if who == "imagenet" else "open_clip"
        assert line.startswith(
            f"{who} needs {package}, which cannot be imported because torchvision is missing or "
        )
        assert "torchvision" in line.partition("(")[2]
        assert line.endswith(
            "install the torchvision that belongs to it, from the same index as torch"
        )
    assert "operator torchvision::nms does not exist" in said[2]

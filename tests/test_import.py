"""Importing the package is cheap, silent and touches no device."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import sys, time, json
import torch
begin = time.process_time()
import clipweather_fast
seconds = time.process_time() - begin
print(json.dumps({
    "seconds": seconds,
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "device": torch.cuda.is_initialized(),
    "dynamo": "torch._dynamo" in sys.modules,
    "core": "clipweather_fast._C" in sys.modules,
}))
"""


def probe() -> tuple[dict[str, object], str]:
    """What a fresh interpreter says after the import, and what it wrote besides."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    *printed, last = done.stdout.splitlines()
    return json.loads(last), "\n".join(printed) + done.stderr


def test_import_is_lean_and_silent() -> None:
    found, printed = probe()
    assert printed == ""
    assert found["device"] is False
    heavy = {
        "accelerate",
        "av",
        "huggingface_hub",
        "numpy.testing",
        "onnx",
        "onnxruntime",
        "open_clip",
        "rich",
        "safetensors",
        "timm",
        "torchvision",
        "transformers",
        "triton",
        "typer",
    }
    assert heavy & set(found["modules"]) == set()


def test_import_takes_at_most_three_tenths_of_a_second_beyond_torch() -> None:
    # Processor time, the best of three: other programs on the machine do not count.
    assert min(probe()[0]["seconds"] for _ in range(3)) <= 0.3

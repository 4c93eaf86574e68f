"""What a process imports until a picture is restored; lists of modules, because times differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipweather_fast.models._skeleton import give_memory, without_values
from small_networks import small

#: What takes long to import and is of no use to one picture and a network that brings its encoder.
HEAVY = {
    "accelerate",
    "av",
    "huggingface_hub",
    "onnx",
    "onnxruntime",
    "open_clip",
    "sympy",
    "tensorboard",
    "timm",
    "torch._dynamo",
    "torch._inductor",
    "torch.fx.experimental.symbolic_shapes",
    "torchvision",
    "transformers",
    "triton",
}
PROBE = """
import json, sys
import torch
before = set(sys.modules)
from clipweather_fast.cli import main
sys.argv = ["clipweather", "restore", sys.argv[1], "-o", sys.argv[2], "--device", "cpu"]
try:
    main()
except SystemExit as end:
    print(json.dumps({"code": end.code, "modules": sorted(set(sys.modules) - before)}))
"""


def test_restoring_a_picture_imports_nothing_heavy(tmp_path: Path) -> None:
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    values = np.random.default_rng(0).integers(0, 256, (40, 72, 3), dtype=np.uint8)
    Image.fromarray(values).save(source)
    command = [sys.executable, "-P", "-c", PROBE, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["code"] == 0, done.stderr
    assert target.is_file()
    assert HEAVY & set(found["modules"]) == set()


def test_a_skeleton_has_the_networks_shapes_and_formats_and_no_memory() -> None:
    real = small()
    with without_values():
        bare = type(real)(real.config)
    for tensor in bare.state_dict().values():
        assert tensor.device.type == "meta"
    give_memory(bare, torch.device("cpu"))
    found, expected = bare.state_dict(), real.state_dict()
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert tensor.device.type == "cpu", name
        assert (tensor.shape, tensor.stride()) == (expected[name].shape, expected[name].stride())
        assert tensor.dtype == expected[name].dtype, name

"""Packs a run's network as the package ships it: half precision, with its configuration.

python examples/mini_synthetic/pack.py RUN/model FOLDER
"""

from __future__ import annotations

import sys

from clipweather_fast.models import pretrained


def main() -> None:
    """Writes FOLDER/model.safetensors and FOLDER/config.json."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    pretrained(sys.argv[1]).half().save_pretrained(sys.argv[2])


if __name__ == "__main__":
    main()

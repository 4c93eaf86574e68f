"""The networks in spandrel, and so in ComfyUI, chaiNNer and what else loads models through it.

    from clipweather_fast.integrations import spandrel
    spandrel.install()

after which ``spandrel.ModelLoader`` knows checkpoints of every registered network by the names and
shapes in them.
"""

from __future__ import annotations

from torch import Tensor

try:
    from spandrel import (
        MAIN_REGISTRY,
        Architecture,
        ArchRegistry,
        ArchSupport,
        ImageModelDescriptor,
        ModelTiling,
        StateDict,
    )
except ImportError as error:
    raise ImportError("this needs spandrel: pip install spandrel") from error

from clipweather_fast.models import RestorationNetwork, create_model
from clipweather_fast.models.recognition import recognised, without_prefixes

__all__ = ["ClipWeatherArchitecture", "install"]


class ClipWeatherArchitecture(Architecture[RestorationNetwork]):
    """Checkpoints of the networks of ``clipweather_fast.models``, told by names and shapes."""

    def __init__(self) -> None:
        super().__init__(
            id="clipweather_fast",
            name="ClipWeather",
            detect=lambda state: recognised(state) is not None,
        )

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[RestorationNetwork]:
        """The network with these weights, to restore pictures of any size.

        Raises:
            ValueError: no registered network has these names and shapes.
        """
        name = recognised(state_dict)
        if name is None:
            raise ValueError(
                "clipweather_fast: no registered network has these parameters; "
                "load a folder with its config.json by create_model('local-dir:FOLDER')"
            )
        return ImageModelDescriptor(
            create_model(name).eval(),
            without_prefixes(state_dict, name),
            architecture=self,
            purpose="Restoration",
            tags=[name],
            supports_half=False,  # activations exceed float16; bfloat16 holds them
            supports_bfloat16=True,
            scale=1,
            input_channels=3,
            output_channels=3,
            tiling=ModelTiling.DISCOURAGED,  # attention and the prior see the whole picture
            call_fn=_restore,
        )


def _restore(network: RestorationNetwork, image: Tensor) -> Tensor:
    restored: Tensor = network(image)
    return restored.clamp(0, 1)


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Adds the networks to a registry of spandrel's, once; they are looked for before all others.

    Args:
        registry: by default the one that ``spandrel.ModelLoader`` uses.
    """
    known = tuple(support.architecture.id for support in registry)
    registry.add(
        ArchSupport.from_architecture(ClipWeatherArchitecture(), before=known),
        ignore_duplicates=True,
    )

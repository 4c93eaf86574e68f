"""``clipweather models``."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

__all__ = ["models"]


def models(
    filter: Annotated[
        str,
        typer.Argument(help="Part of a name, or a pattern such as 'clip*'.", show_default=False),
    ] = "",
) -> None:
    """List the networks: millions of parameters (without a frozen prior encoder) and weights."""
    from clipweather_fast.models import create_model, list_models, registry

    names = list_models(filter)
    if not names:
        known = ", ".join(list_models())
        raise typer.BadParameter(
            f"no name matches {filter!r}; there are {known}", param_hint="'[FILTER]'"
        )
    width = max(map(len, names))
    for name in names:
        with torch.device("meta"):  # counts without memory
            network = create_model(name)
        count = sum(parameter.numel() for parameter in network.parameters())
        prior = getattr(network.config, "prior_encoder", "none")
        weights = "with the package" if name in registry.WEIGHTS else "none come with the package"
        typer.echo(f"{name:<{width}}  {count / 1e6:5.1f} M  {registry.description(name)}")
        typer.echo(f"{'':<{width}}           weights: {weights}; prior encoder: {prior}")

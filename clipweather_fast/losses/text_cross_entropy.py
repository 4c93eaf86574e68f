"""Cross entropy of the projected weather prior against CLIP's text features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clipweather_fast._autocast import no_autocast
from clipweather_fast.losses._pictures import wide

__all__ = ["text_cross_entropy"]

#: The label of a picture whose weather is not known.
UNKNOWN = -1


def text_cross_entropy(
    projected_prior: Tensor, text_features: Tensor, labels: Tensor, temperature: float = 100.0
) -> Tensor:
    r"""How badly the prior, after its two linear layers, names the weather.

    .. math:: -\frac{1}{\sum_{nk} l_{nk}} \sum_{nk} l_{nk} \log \mathrm{softmax}_k(
        \tau \cos(p_n, t_k))

    Args:
        projected_prior: p (N, D).
        text_features: t (C, D), one row per weather; no gradient reaches them.
        labels: classes (N,), integer, -1 where the weather is not known; or, after CutMix, shares
            (N, C), where a row of zeros is a picture whose weather is not known.
        temperature: τ. 100 is CLIP's own scale of the cosine, 1 the paper's text read literally.

    Returns:
        The mean over the pictures with a label, a scalar, at least float32; 0 if there are none.

    Numerics:
        float32 under autocast too: a rounded cosine would be multiplied by a hundred.

    Reference:
        The text classification loss of arXiv 2306.09008.

    Raises:
        TypeError, ValueError: if dtypes or shapes do not go together, or τ is not positive.
    """
    _check(projected_prior, text_features, labels, temperature)
    with no_autocast(projected_prior.device.type):
        p = F.normalize(wide(projected_prior), dim=1)
        t = F.normalize(wide(text_features.detach()).to(p.dtype), dim=1)
        logarithms = F.log_softmax(temperature * (p @ t.T), dim=1)
        if labels.dim() == 1:
            known = labels != UNKNOWN
            # Where it is not known any class will do: it counts zero times.
            found = logarithms.gather(1, labels.long().where(known, 0)[:, None])[:, 0]
            return -(found * known).sum() / known.sum().clamp_min(1)
        shares = labels.to(p.dtype)
        mass = shares.sum()
        return -(shares * logarithms).sum() / mass.where(mass > 0, 1.0)


def _check(prior: Tensor, text: Tensor, labels: Tensor, temperature: float) -> None:
    who = "text_cross_entropy"
    for name, value in (("projected_prior", prior), ("text_features", text)):
        if not value.is_floating_point():
            raise TypeError(f"{who}: {name} must be floating point, got {value.dtype}")
    if prior.dim() != 2 or text.dim() != 2 or prior.shape[1] != text.shape[1]:
        raise ValueError(
            f"{who}: projected_prior must be (N, D) and text_features (C, D), "
            f"got {tuple(prior.shape)} and {tuple(text.shape)}"
        )
    classes, shares = (prior.shape[0],), (prior.shape[0], text.shape[0])
    hard = labels.shape == classes and not labels.is_floating_point()
    soft = labels.shape == shares and labels.is_floating_point()
    if not (hard or soft):
        raise ValueError(
            f"{who}: labels must be integers {classes} or shares {shares}, "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"{who}: temperature must be positive, got {temperature!r}")

"""Text cross entropy: PyTorch's own where it defines the same, worked values, soft labels."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.clip import TextFeatures, WeatherClassifier
from clipweather_fast.losses import text_cross_entropy


def operands(n: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 16, dtype=dtype), F.normalize(torch.randn(3, 16, dtype=dtype), dim=1)


def test_is_the_cross_entropy_of_the_classifier_s_logits() -> None:
    prior, text = operands()
    logits = WeatherClassifier(TextFeatures(text)).logits(prior)
    labels = torch.tensor([0, 2, 1, 1, 0])
    found = text_cross_entropy(prior, text, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels), rtol=1e-5, atol=1e-5)
    shares = torch.rand(5, 3).softmax(1)
    found = text_cross_entropy(prior, text, shares)
    torch.testing.assert_close(found, F.cross_entropy(logits, shares), rtol=1e-5, atol=1e-5)


def test_a_worked_value() -> None:
    prior, text = torch.tensor([[3.0, 0.0]]), torch.eye(2)
    found = text_cross_entropy(prior, text, torch.tensor([1]), temperature=2.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(2.0)))


def test_one_hot_shares_are_hard_labels() -> None:
    prior, text = operands()
    labels = torch.tensor([0, 2, 1, 1, 0])
    soft = text_cross_entropy(prior, text, F.one_hot(labels, 3).float())
    torch.testing.assert_close(soft, text_cross_entropy(prior, text, labels))


def test_pictures_of_unknown_weather_do_not_count() -> None:
    prior, text = operands()
    prior.requires_grad_()
    labels = torch.tensor([0, -1, 1, -1, 2])
    known = labels >= 0
    expected = text_cross_entropy(prior[known], text, labels[known])
    torch.testing.assert_close(text_cross_entropy(prior, text, labels), expected)
    shares = torch.zeros(5, 3)
    shares[known] = F.one_hot(labels[known], 3).float()
    torch.testing.assert_close(text_cross_entropy(prior, text, shares), expected)
    for nothing in (torch.full((5,), -1), torch.zeros(5, 3)):
        loss = text_cross_entropy(prior, text, nothing)
        (grad,) = torch.autograd.grad(loss, prior)
        assert loss.item() == 0.0
        assert torch.equal(grad, torch.zeros_like(grad))


def test_gradients_reach_the_prior_alone() -> None:
    prior, text = operands(dtype=torch.float64)
    prior.requires_grad_()
    text.requires_grad_()
    shares = torch.rand(5, 3, dtype=torch.float64).softmax(1)

    def loss(prior: Tensor) -> Tensor:
        return text_cross_entropy(prior, text, shares, temperature=10.0)

    assert torch.autograd.gradcheck(loss, prior)
    loss(prior).backward()
    assert text.grad is None


def test_autocast_rounds_nothing() -> None:
    prior, text = operands()
    labels = torch.tensor([0, 2, 1, 1, 0])
    with torch.autocast("cpu", torch.bfloat16):
        found = text_cross_entropy(prior, text, labels)
    assert torch.equal(found, text_cross_entropy(prior, text, labels))


def test_wrong_arguments_are_named() -> None:
    prior, text = operands()
    with pytest.raises(ValueError, match=r"integers \(5,\) or shares \(5, 3\), got .*\(5, 2\)"):
        text_cross_entropy(prior, text, torch.rand(5, 2))
    with pytest.raises(ValueError, match=r"integers .*got torch.float32 \(5,\)"):
        text_cross_entropy(prior, text, torch.rand(5))
    with pytest.raises(ValueError, match=r"must be \(N, D\) and text_features \(C, D\)"):
        text_cross_entropy(prior, text[:, :8], torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature must be positive"):
        text_cross_entropy(prior, text, torch.zeros(5, dtype=torch.int64), temperature=0.0)
    with pytest.raises(TypeError, match="projected_prior must be floating point"):
        text_cross_entropy(prior.long(), text, torch.zeros(5, dtype=torch.int64))

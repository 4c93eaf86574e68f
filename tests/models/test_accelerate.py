"""accelerate(): what it swaps, that nothing changes but the time, and what it leaves."""

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clipweather_fast
from clipweather_fast import modules, ops
from clipweather_fast.models import AccelerationReport, Left, Swapped
from same_module import assert_same_function, randomised, tokens
from structured_networks import (
    Block,
    FeedForward,
    OldSegformerLayer,
    ReducedAttention,
    TransWeatherEncoder,
    picture,
)

#: Odd, and with several windows of the largest reduction: a single key has gradients of pure noise.
SIZE = (9, 11)


def accelerated(module: nn.Module) -> tuple[nn.Module, AccelerationReport]:
    """An accelerated copy, and the report on it."""
    fast = copy.deepcopy(module)
    return fast, clipweather_fast.accelerate(fast)


class FusedCalls:
    """Counts the calls of the fused operators."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("depthwise_conv2d", "reduced_kv_attention"):
            monkeypatch.setattr(ops, name, self._counting(getattr(ops, name)))

    def _counting(self, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return counted


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> FusedCalls:
    return FusedCalls(monkeypatch)


# ---- blocks: equal under the tolerance rule --------------------------------------------------

BLOCKS = {
    "mlp": lambda: FeedForward(16, 32),
    "attention sr 1": lambda: ReducedAttention(16, 2, 1),
    "attention sr 2": lambda: ReducedAttention(32, 2, 2),
    "attention sr 4": lambda: ReducedAttention(64, 1, 4),
    "attention of 80 channels a head": lambda: ReducedAttention(80, 1, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_and_its_gradients_stay_the_same(
    name: str, dtype: torch.dtype, fused: FusedCalls
) -> None:
    block = randomised(BLOCKS[name]()).to(dtype)
    fast, report = accelerated(block)
    assert len(report.swapped) == 1
    fused.count = 0
    x = tokens(2, *SIZE, next(block.parameters()).shape[1]).to(dtype)
    assert_same_function(fast, block, x, *SIZE)
    assert fused.count > 0


@pytest.mark.parametrize("kind", ["attn", "mlp"])
@pytest.mark.parametrize("network", ["pvt_v2_b0", "pvt_v2_b2_li"])
def test_timm_s_blocks_stay_the_same(network: str, kind: str, fused: FusedCalls) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(network, depths=(1, 1, 1, 1))
    for stage in model.stages:
        block = randomised(getattr(stage.blocks[0], kind))
        fast, report = accelerated(block)
        assert len(report.swapped) == 1
        fused.count = 0
        x = tokens(1, 16, 24, next(block.parameters()).shape[1])
        assert_same_function(fast, block, x, (16, 24))
        assert fused.count > 0


def test_old_segformer_s_layer_stays_the_same(fused: FusedCalls) -> None:
    layer = randomised(OldSegformerLayer())
    fast, report = accelerated(layer)
    assert {(b.name, b.became) for b in report.swapped} == {
        ("attention", "EfficientAttention"),
        ("mlp", "ConvMlp"),
    }
    fused.count = 0
    assert_same_function(fast, layer, tokens(2, *SIZE, 32), *SIZE)
    assert fused.count > 0


# ---- whole networks ---------------------------------------------------------------------------


def timm_network(name: str, **changes: Any) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, drop_path_rate=0.0, **changes)


def segformer(**config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = transformers.SegformerConfig(
        hidden_sizes=[16, 32, 80, 128],
        depths=[1, 2, 1, 1],
        num_attention_heads=[1, 2, 4, 4],
        drop_path_rate=0.0,
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **config},
    )
    return transformers.SegformerModel(small)


def hugging_face_pvt(**config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = transformers.PvtV2Config(
        image_size=64,
        hidden_sizes=[16, 32, 80, 128],
        depths=[1, 2, 1, 1],
        num_attention_heads=[1, 2, 4, 4],
        sr_ratios=[8, 4, 2, 1],
        drop_path_rate=0.0,
        **config,
    )
    return transformers.PvtV2Model(small)


NETWORKS = {
    "hugging face's pvt_v2": (hugging_face_pvt, 10),
    "hugging face's pvt_v2 li": (lambda: hugging_face_pvt(linear_attention=True), 10),
    "pvt_v2_b0": (lambda: timm_network("pvt_v2_b0"), 16),
    "pvt_v2_b2_li": (lambda: timm_network("pvt_v2_b2_li", depths=(1, 1, 1, 1)), 8),
    "segformer": (segformer, 10),
    "transweather": (TransWeatherEncoder, 14),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_of_a_network_is_swapped_and_nothing_changes(
    name: str, fused: FusedCalls
) -> None:
    make, blocks = NETWORKS[name]
    model = make().double()
    fast, report = accelerated(model)
    assert (len(report.swapped), report.left, report.already) == (blocks, (), 0)
    fused.count = 0
    x = picture(72, 128).double()
    expected, got = everything(model, x), everything(fast, x)
    assert fused.count >= blocks
    assert list(expected) == list(got)
    for key, value in expected.items():
        scale = max(value.abs().max().item(), 1e-6)
        assert (value - got[key]).abs().max().item() <= 1e-10 * scale, key


def everything(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs and the gradients of the picture and of every parameter."""
    x = x.clone().requires_grad_()
    output = model(x)
    output = getattr(output, "last_hidden_state", output)
    outputs = output if isinstance(output, tuple) else (output,)
    sum((y * torch.arange(y.numel()).cos().view_as(y)).sum() for y in outputs).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    values = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return values | {"picture": x.grad} | {k: g for k, g in grads.items() if g is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_parameters_and_modes_stay(name: str) -> None:
    model = NETWORKS[name][0]()
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    modes = {n: m.training for n, m in model.train().named_modules()}
    classes = {n: type(m) for n, m in model.named_modules()}
    clipweather_fast.accelerate(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert modes == {n: m.training for n, m in model.named_modules()}
    assert all(isinstance(m, classes[n]) for n, m in model.named_modules())
    assert all(p.grad is None for p in parameters)
    model.load_state_dict(before)


def test_channels_last_pictures_and_autocast() -> None:
    model = timm_network("pvt_v2_b0").eval()
    fast, _ = accelerated(model)
    x = picture(64, 96, 2).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(x), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, got = model(x), fast(x)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


# ---- a swapped module behaves -----------------------------------------------------------------


def test_a_second_call_swaps_nothing() -> None:
    fast, first = accelerated(TransWeatherEncoder())
    second = clipweather_fast.accelerate(fast)
    assert (second.swapped, second.left, second.already) == ((), (), len(first.swapped))


def test_copy_and_pickle() -> None:
    fast, _ = accelerated(randomised(Block(16, 2, 2)))
    x = tokens(1, *SIZE, 16)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(twin.attn) is type(fast.attn)
        assert torch.equal(twin(x, *SIZE), fast(x, *SIZE))
        with torch.no_grad():
            twin.mlp.fc2.weight.zero_()
        assert not torch.equal(twin(x, *SIZE), fast(x, *SIZE))


class Remembering(FeedForward):
    """A block that decides for itself what is pickled of it."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "cache": "made again"})


def test_copy_and_pickle_ask_the_block() -> None:
    block = Remembering(16, 32)
    block.cache = threading.Lock()
    fast = block
    assert len(clipweather_fast.accelerate(fast).swapped) == 1
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert twin.cache == "made again"


def test_a_class_token_is_no_part_of_the_picture(fused: FusedCalls) -> None:
    """PVT's first version has one in its last stage, where nothing is reduced."""
    attention = randomised(ReducedAttention(16, 2, 1))
    fast, report = accelerated(attention)
    assert len(report.swapped) == 1
    x, fused.count = torch.randn(1, 1 + 9 * 11, 16), 0
    torch.testing.assert_close(fast(x, 9, 11), attention(x, 9, 11))
    assert fused.count == 1


def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    fast, _ = accelerated(randomised(Block(16, 2, 2)))
    x = tokens(1, *SIZE, 16)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, *SIZE), fast(x, *SIZE))


@pytest.mark.parametrize("wrap", ["compile", "data_parallel"])
def test_wrappers_are_looked_into(wrap: str, fused: FusedCalls) -> None:
    torch.compiler.reset()
    block = randomised(Block(16, 2, 2))
    x = tokens(1, *SIZE, 16)
    expected = block(x, *SIZE)
    wrapper = nn.DataParallel(block)
    if wrap == "compile":
        wrapper = torch.compile(block, backend="eager")
        torch.testing.assert_close(wrapper(x, *SIZE), expected)
    report = clipweather_fast.accelerate(wrapper)
    prefix = "_orig_mod" if wrap == "compile" else "module"
    assert [b.name for b in report.swapped] == [f"{prefix}.attn", f"{prefix}.mlp"]
    fused.count = 0
    torch.testing.assert_close(wrapper(x, *SIZE), expected)
    assert fused.count > 0


def test_hooks_of_the_block_stay_and_none_is_called_by_the_trial() -> None:
    block = FeedForward(16, 32)
    calls: list[str] = []
    block.register_forward_hook(lambda *_: calls.append("block"))
    block.fc1.register_forward_pre_hook(lambda *_: calls.append("fc1"))
    state = torch.get_rng_state()
    assert len(clipweather_fast.accelerate(block).swapped) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert calls == []
    block(tokens(1, *SIZE, 16), *SIZE)
    assert calls == ["fc1", "block"]


@pytest.mark.parametrize("child", ["dwconv", "dwconv.dwconv", "act", "drop"])
def test_a_hook_on_a_fused_layer_is_called_as_before(child: str, fused: FusedCalls) -> None:
    block = FeedForward(16, 32)
    clipweather_fast.accelerate(block)
    seen: list[Tensor] = []
    handle = block.get_submodule(child).register_forward_hook(lambda m, i, o: seen.append(o))
    fused.count = 0
    block(tokens(1, *SIZE, 16), *SIZE)
    calls = 2 if child == "drop" else 1
    assert (len(seen), fused.count) == (calls, 0)
    handle.remove()
    block(tokens(1, *SIZE, 16), *SIZE)
    assert (len(seen), fused.count) == (calls, 1)


@pytest.mark.parametrize(
    "make",
    [lambda: FeedForward(16, 32, drop=0.5), lambda: ReducedAttention(16, 2, 2, 0.5, 0.5)],
    ids=["mlp", "attention"],
)
def test_dropout_is_the_original_s_to_the_bit(make: Any, fused: FusedCalls) -> None:
    block = randomised(make())
    fast, report = accelerated(block)
    assert len(report.swapped) == 1
    x = tokens(2, *SIZE, 16)
    torch.manual_seed(11)
    expected = block.train()(x, *SIZE)
    torch.manual_seed(11)
    fused.count = 0
    assert torch.equal(fast.train()(x, *SIZE), expected)
    assert fused.count == 0
    torch.testing.assert_close(fast.eval()(x, *SIZE), block.eval()(x, *SIZE))
    assert fused.count == 1


def test_keyword_arguments_are_accepted() -> None:
    block = randomised(FeedForward(16, 32))
    fast, _ = accelerated(block)
    x = tokens(1, *SIZE, 16)
    torch.testing.assert_close(fast(x, H=9, W=11), block(x, 9, 11))


def test_a_wrong_size_is_named_by_the_block() -> None:
    fast, _ = accelerated(Block(16, 2, 2))
    for block, name in ((fast.attn, "ReducedAttention"), (fast.mlp, "FeedForward")):
        words = rf"^{name}: x must be \(N, L, C\) with L = H·W = 4·4, got \(1, 99, 16\)$"
        with pytest.raises(ValueError, match=words):
            block(tokens(1, *SIZE, 16), 4, 4)


def test_frozen_and_tied_parameters() -> None:
    model = nn.ModuleList([FeedForward(16, 32), FeedForward(16, 32)])
    model[1].fc1.weight = model[0].fc1.weight
    model[0].requires_grad_(False)
    assert len(clipweather_fast.accelerate(model).swapped) == 2
    assert model[1].fc1.weight is model[0].fc1.weight
    assert not model[0].fc1.weight.requires_grad


def test_half_precision_and_inference_mode() -> None:
    with torch.inference_mode():
        block = randomised(Block(16, 2, 2)).half().eval()
        fast, report = accelerated(block)
        assert len(report.swapped) == 2
        x = tokens(1, *SIZE, 16).half()
        torch.testing.assert_close(fast(x, *SIZE), block(x, *SIZE), rtol=1e-2, atol=1e-2)


# ---- Segformer's attentions -------------------------------------------------------------------


def test_segformer_s_attention_probabilities_are_still_given() -> None:
    model = segformer(attn_implementation="eager").eval()
    fast, report = accelerated(model)
    if report.left:
        assert {b.class_name for b in report.left} == {
            type(model.stages[0].blocks[0].attention).__name__
        }
        assert all("set_attn_implementation('sdpa')" in b.reason for b in report.left)
    x = picture()
    expected = model(x, output_attentions=True, output_hidden_states=True)
    got = fast(x, output_attentions=True, output_hidden_states=True)
    assert len(got.attentions) == len(expected.attentions) == 5
    for one, other in zip(got.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other)


def test_segformer_s_hidden_states_do_not_cost_the_speed(fused: FusedCalls) -> None:
    fast, _ = accelerated(segformer().eval())
    fused.count = 0
    fast(picture(), output_hidden_states=True)
    assert fused.count == 10


def test_a_segformer_set_to_eager_later_takes_its_own_attention(fused: FusedCalls) -> None:
    model = segformer().eval()
    if not hasattr(model, "set_attn_implementation"):
        pytest.skip("this transformers cannot change a model's attention")
    fast, _ = accelerated(model)
    fast.set_attn_implementation("eager")
    fused.count = 0
    assert len(fast(picture(), output_attentions=True).attentions) == 5
    assert fused.count == 5


def test_old_segformer_s_attention_probabilities_are_still_given() -> None:
    layer = randomised(OldSegformerLayer())
    fast, _ = accelerated(layer)
    x = tokens(1, *SIZE, 32)
    expected, got = layer(x, *SIZE, True), fast(x, *SIZE, True)
    assert got[1].shape == (1, 2, 99, 20)
    torch.testing.assert_close(got, expected)


# ---- what is left, and why --------------------------------------------------------------------


class Scaled(FeedForward):
    """Looks like the block, computes something else."""

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return 1.001 * super().forward(x, H, W)


class Detached(FeedForward):
    """Equal in value, not in gradient."""

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return super().forward(x.detach(), H, W) + 0 * x


class OtherArguments(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, 1, x.shape[1])


class Causal(ReducedAttention):
    """A learned bias on the scores, as a tensor of its own."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("bias", torch.zeros(1))


class MultiQuery(nn.Module):
    """Children of the known names, but one key and one value for all heads."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x)[:, None].chunk(2, -1)
        scores = q @ k.transpose(2, 3) * self.scale
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Norms(nn.Module):
    """Split attention whose reduction has no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.sr_ratio, self.num_attention_heads = 2, 2
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.sr = nn.Conv2d(8, 8, 2, stride=2)

    def forward(self, x: Tensor, H: int, W: int) -> tuple[Tensor]:
        return (x,)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def with_child(block: nn.Module, name: str, child: nn.Module) -> nn.Module:
    parent, _, last = name.rpartition(".")
    setattr(block.get_submodule(parent), last, child)
    return block


def replaced_on_instance() -> nn.Module:
    block = FeedForward(8, 16)
    block.forward = lambda x, H, W: x
    return block


LEFT = {
    "relu": (lambda: FeedForward(8, 16, nn.ReLU()), "its activation ReLU() is not the exact GELU"),
    "tanh": (
        lambda: FeedForward(8, 16, nn.GELU("tanh")),
        "its activation GELU(approximate='tanh') is not the exact GELU",
    ),
    "quick": (
        lambda: FeedForward(8, 16, QuickGELU()),
        "its activation QuickGELU() is not the exact GELU",
    ),
    "prelu": (lambda: FeedForward(8, 16, nn.PReLU()), "its activation PReLU has parameters"),
    "5 × 5": (
        lambda: FeedForward(8, 16, kernel=5),
        "its dwconv.dwconv must be 3 × 3 with stride 1, zero padding 1 and dilation 1",
    ),
    "dense": (
        lambda: with_child(FeedForward(8, 16), "dwconv.dwconv", nn.Conv2d(16, 16, 3, padding=1)),
        "its dwconv.dwconv is not depthwise (groups = 1)",
    ),
    "reflecting": (
        lambda: with_child(
            FeedForward(8, 16),
            "dwconv.dwconv",
            nn.Conv2d(16, 16, 3, padding=1, groups=16, padding_mode="reflect"),
        ),
        "zero padding 1",
    ),
    "normed": (
        lambda: with_child(FeedForward(8, 16), "norm", nn.LayerNorm(16)),
        "it has a child 'norm', whose use is unknown",
    ),
    "alpha dropout": (
        lambda: with_child(FeedForward(8, 16), "drop", nn.AlphaDropout(0.1)),
        "its drop is a AlphaDropout, not an nn.Dropout",
    ),
    "parametrised": (
        lambda: with_child(
            FeedForward(8, 16),
            "dwconv.dwconv",
            nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3, padding=1, groups=16)),
        ),
        "its dwconv.dwconv is a ParametrizedConv2d, not an nn.Conv2d",
    ),
    "scaled": (lambda: Scaled(8, 16), "it computes something else than the fused block"),
    "detached": (lambda: Detached(8, 16), "it computes something else than the fused block"),
    "signature": (lambda: OtherArguments(8, 16), "its forward takes (self, x: torch.Tensor)"),
    "buffer": (
        lambda: Causal(8, 2, 1),
        "it has a tensor of its own, 'bias', whose use is unknown",
    ),
    "multi-query": (lambda: MultiQuery(16, 2), "the fused block cannot compute it: "),
    "no norm": (Norms, "it has sr but no norm"),
    "heads": (lambda: ReducedAttention(512, 1, 1), "its heads have 512 channels"),
    "meta": (lambda: FeedForward(8, 16).to("meta"), "its parameters are on the meta device"),
    "instance": (replaced_on_instance, "its forward was replaced on the instance"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_the_same_is_left_with_the_reason(name: str) -> None:
    make, reason = LEFT[name]
    block = make()
    original = type(block)
    report = clipweather_fast.accelerate(block)
    assert report.swapped == ()
    assert len(report.left) == 1
    assert reason in report.left[0].reason
    assert type(block) is original


def test_a_scripted_block_is_left_with_the_reason() -> None:
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit"):
        block = torch.jit.script(FeedForward(8, 16))
    (left,) = clipweather_fast.accelerate(block).left
    assert "TorchScript" in left.reason


def test_our_own_modules_are_fast_already() -> None:
    model = nn.ModuleList([modules.ConvMlp(8), modules.SARFFN(8), modules.EfficientAttention(8, 2)])
    report = clipweather_fast.accelerate(model)
    assert (report.swapped, report.left, report.already) == ((), (), 3)


def test_other_networks_are_not_touched() -> None:
    model = nn.TransformerEncoderLayer(16, 2)
    report = clipweather_fast.accelerate(model)
    assert report == AccelerationReport((), ())
    assert str(report) == "accelerate: found no block of a known structure; nothing was changed"


def test_the_report_reads_well() -> None:
    model = nn.ModuleDict({"a": FeedForward(8, 16), "b": FeedForward(8, 16, nn.ReLU())})
    report = clipweather_fast.accelerate(model)
    assert report.swapped == (Swapped("a", "FeedForward", "ConvMlp"),)
    assert report.left == (Left("b", "FeedForward", "its activation ReLU() is not the exact GELU"),)
    assert str(report).splitlines() == [
        "accelerate: swapped 1, left 1",
        "  1 x FeedForward -> ConvMlp: a",
        "  left 1 x FeedForward: its activation ReLU() is not the exact GELU: b",
    ]


def test_something_else_than_a_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^accelerate: model must be an nn.Module, got str$"):
        clipweather_fast.accelerate("pvt_v2_b0")  # type: ignore[arg-type]

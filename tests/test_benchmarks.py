"""The benchmarks' own machinery: a wrong kernel gets no time, a result file is whole or old."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # at the end: the package under test is the one installed

from benchmarks import gpu, measure, picture_tables, report, results, rows  # noqa: E402
from benchmarks.contest import Contest, Settings  # noqa: E402
from benchmarks.correctness import WrongResult, truth_of  # noqa: E402
from benchmarks.models import (  # noqa: E402
    bench_pictures,
    picture_contest,
    picture_memory,
    picture_sides,
    picture_trace,
)
from benchmarks.models.picture_contest import PictureCase, PictureSize  # noqa: E402
from benchmarks.models.picture_work import flops  # noqa: E402
from benchmarks.ops import bench_sar_conv2d, bench_sar_mixer  # noqa: E402
from benchmarks.shapes import ImageSize, attention_size, hidden_size  # noqa: E402
from benchmarks.subject import Case, Contestant, Inputs  # noqa: E402

SUBJECT = bench_sar_conv2d.SUBJECT
SMALL = ImageSize("small", 2, 8, 5, 7)
CASE = Case(SMALL, torch.float32, "both")


def record(name: str, ours: float, eager: float) -> dict[str, object]:
    times = {"eager contiguous": eager, "eager channels_last": 2 * eager, "ours": ours}
    contestants = {
        who: {
            "median_s": t,
            "p20_s": t,
            "p80_s": t,
            "rounds": 5,
            "saved_bytes": 10,
            "peak_bytes": 10,
        }
        for who, t in times.items()
    }
    shape = {"name": name, "dtype": "float32", "direction": "forward", "matrix": False}
    work = {"bytes": 10**9, "flops": 10**9, "instructions": 0}
    return {**shape, **work, "contestants": contestants, "refused": {}, "error": 0.0}


HEADER = {
    "machine": {"cpu": "a processor", "cpu_isa": "avx2", "cores": 2},
    "versions": {"torch": "2.15.0"},
    "commit": "0" * 40,
    "modified": False,
    "device": "cpu",
    "scope": "headline",
    "threads": 1,
    "allocator": "tuned",
    "clock": "wall",
    "roofs": {"copy_bytes_per_s": 2e10, "matmul_float32_flops": 1e11, "fma_per_s": 5e10},
}


# ---- values come first -------------------------------------------------------------------------


def test_the_reference_passes_its_own_gate() -> None:
    assert truth_of(SUBJECT, CASE, "cpu").check("reference", SUBJECT.reference) < 1e-5


def test_a_wrong_value_is_refused() -> None:
    def wrong(inputs: Inputs) -> torch.Tensor:
        return SUBJECT.reference(inputs) + 1e-3

    with pytest.raises(WrongResult, match="wrong: y is off by"):
        truth_of(SUBJECT, CASE, "cpu").check("wrong", wrong)


@pytest.mark.parametrize("name", SUBJECT.differentiable)
def test_a_wrong_gradient_is_refused(name: str) -> None:
    def wrong(inputs: Inputs) -> torch.Tensor:
        hooked = dict(inputs)
        hooked[name] = inputs[name] * 1
        if hooked[name].requires_grad:
            hooked[name].register_hook(lambda grad: grad * 1.001)
        return SUBJECT.reference(hooked)

    with pytest.raises(WrongResult, match=f"grad_{name} is off by"):
        truth_of(SUBJECT, CASE, "cpu").check("wrong", wrong)


def test_nan_is_refused() -> None:
    with pytest.raises(WrongResult):
        truth_of(SUBJECT, CASE, "cpu").check("nan", lambda i: SUBJECT.reference(i) * float("nan"))


def test_another_function_takes_part_without_being_compared() -> None:
    other = Contestant("other", lambda inputs: SUBJECT.reference(inputs) + 1)
    settings = Settings("cpu", "quick", 0.1, (2, 2), False, 1, False, 1 << 20)
    truth = truth_of(SUBJECT, CASE, "cpu")
    answers = SUBJECT.explain(truth.inputs)
    for name in ("unlike", "opponents"):
        subject = dataclasses.replace(SUBJECT, **{name: lambda case, device: [other]})
        found, refused = Contest(settings)._contestants(subject, CASE, answers, truth)
        assert (other in found) == (name == "unlike")
        assert ("other" in refused) == (name == "opponents")
        assert found[-1].name == "ours"


# ---- what is measured --------------------------------------------------------------------------


def test_least_bytes_are_inputs_and_outputs_once() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = SUBJECT.inputs(SMALL, torch.bfloat16, "cpu", "contiguous", generator)
    x, logits = inputs["x"], inputs["logits"]
    work = {d: SUBJECT.work(SMALL, torch.bfloat16, d) for d in ("forward", "backward", "both")}
    assert work["forward"].bytes == 2 * x.nbytes + logits.nbytes
    assert work["backward"].bytes == 3 * x.nbytes + 2 * logits.nbytes
    assert work["both"].fma == work["forward"].fma + work["backward"].fma
    fused = bench_sar_mixer.SUBJECT.work(SMALL, torch.bfloat16, "forward")
    assert fused.bytes == 2 * x.nbytes


def test_shapes_are_the_networks() -> None:
    assert [hidden_size("1080p", stage).c for stage in (1, 2, 3, 4)] == [128, 256, 640, 1024]
    assert dataclasses.astuple(hidden_size("480x720", 4))[1:5] == (1, 1024, 15, 23)
    first = attention_size("256x256", 1)
    assert (first.queries, first.keys, first.heads, first.d) == (4096, 256, 1, 64)
    third = attention_size("256x256", 3)
    assert (third.queries, third.keys, third.heads, third.d) == (256, 64, 4, 80)


def test_nobody_is_given_inputs_that_are_still_warm() -> None:
    pool = measure.Pool(SUBJECT, CASE, "cpu", cache_bytes=1 << 14)
    assert pool.count > 2
    given = [pool.next("contiguous")["x"].data_ptr() for _ in range(pool.count)]
    assert len(set(given)) == pool.count
    first, second = pool.sets("contiguous")[:2]
    assert first["weight"] is second["weight"]


def test_memory_counts_what_autograd_keeps_and_what_is_allocated() -> None:
    lane = measure.Lane(
        Contestant("eager", SUBJECT.reference), SUBJECT, CASE, measure.Pool(SUBJECT, CASE, "cpu", 1)
    )
    lane.warm(1)
    found = measure.memory(lane, "cpu")
    image = SMALL.elements * 4
    # x, the three products' factors and the pre-activation, and some maps; no parameter.
    assert 5 * image <= found["saved_bytes"] <= 8 * image
    assert found["peak_bytes"] >= 6 * image


def test_the_tuned_allocator_keeps_large_buffers() -> None:
    program = (
        "import platform, resource, sys\n"
        "if platform.libc_ver()[0] != 'glibc': sys.exit(0)\n"
        "import torch\n"
        "from benchmarks import allocator\n"
        "assert allocator.tune(heap=1 << 29)\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = faults()\n"
        "for _ in range(5): torch.empty(1 << 24).fill_(1)\n"
        "assert faults() - before < (1 << 26) // 4096, faults() - before\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


# ---- result files ------------------------------------------------------------------------------


def test_a_result_is_replaced_only_by_a_complete_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PARTIAL", tmp_path / "partial")
    final = tmp_path / "results" / "machine" / "topic.json"
    for value in (1.0, 2.0):
        store = results.Store("machine", HEADER, tmp_path / "results")
        store.add("topic", record("a case", value, 3.0))
        if value == 1.0:
            store.finish("topic")
    kept = json.loads(final.read_text())
    assert kept["complete"]
    assert kept["cases"][0]["contestants"]["ours"]["median_s"] == 1.0
    partial = json.loads((tmp_path / "partial" / "machine" / "topic.json").read_text())
    assert not partial["complete"]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    results.write_atomically(path, "old")

    def interrupted(self: Path, text: str, **options: object) -> int:
        with self.open("w") as half:
            half.write(text[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.write_atomically(path, "new")
    assert path.read_text() == "old"


# ---- the report --------------------------------------------------------------------------------


def content() -> dict[str, object]:
    cases = [
        record("a win", 0.1, 0.4),
        record("a small loss", 0.4, 0.36),
        record("a loss", 1.0, 0.5),
    ]
    return {**HEADER, "schema": 1, "topic": "sar_conv2d", "complete": True, "folder": "machine"} | {
        "cases": cases
    }


def test_losses_come_first() -> None:
    found = rows.rows(content())
    assert [row.name for row in found] == ["a loss", "a small loss", "a win"]
    assert found[0].best("eager") == pytest.approx(0.5)
    assert found[2].ratio("eager channels_last") == pytest.approx(8.0)


def test_the_roof_is_the_one_that_binds() -> None:
    win = rows.rows(content())[2]
    name, share = win.roof or ("", 0.0)
    assert name == "copy"  # 10^9 bytes take 50 ms at 20 GB/s, half a giga multiply-add takes 10 ms
    assert share == pytest.approx(0.5)


def test_the_committed_tables_are_current() -> None:
    command = [sys.executable, "-m", "benchmarks.report", "--check"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_stale_table_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, performance = tmp_path / "README.md", tmp_path / "performance.md"
    for page in (readme, performance):
        page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for name, path in (
        ("ROOT", tmp_path),
        ("README", readme),
        ("PERFORMANCE", performance),
        ("DETAILS", tmp_path / "benchmarks.md"),
        ("CHART", tmp_path / "benchmarks.svg"),
    ):
        monkeypatch.setattr(report, name, path)
    monkeypatch.setattr(report, "HEADLINE", (("sar_conv2d", "a win"),))
    monkeypatch.setattr(report, "load_all", lambda results: [content()])
    assert report.main(["--check"]) == 1
    assert "README.md is not current" in capsys.readouterr().out
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `sar_conv2d` a win | 100.0 | 4.0× |" in text
    assert "<svg" in (tmp_path / "benchmarks.svg").read_text()


# ---- make gpu ----------------------------------------------------------------------------------


def test_a_phase_out_of_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LOGS", tmp_path)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    slow = gpu.run(gpu.Phase("slow", sleep, 60, {}), 1.0, None)
    assert slow.word == "out of time"
    assert slow.seconds < 30
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    assert gpu.run(gpu.Phase("fails", fails, 60, {}), 30.0, None).word == "failed (3)"
    absent = gpu.run(gpu.Phase("absent", ["no-such-program"], 60, {}), 30.0, None)
    assert absent.word.startswith("skipped")


def test_an_interrupted_benchmark_becomes_a_result_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PARTIAL", tmp_path / "partial")
    monkeypatch.setattr(gpu, "PARTIAL", tmp_path / "partial")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    store = results.Store("machine", HEADER, tmp_path / "results")
    store.add("topic", record("a case", 1.0, 2.0))
    gpu._keep_partial(since=0.0)
    kept = json.loads((tmp_path / "results" / "machine" / "topic.json").read_text())
    assert not kept["complete"]


# ---- whole networks ----------------------------------------------------------------------------


def pictured(monkeypatch: pytest.MonkeyPatch, wrong: str = "", seconds: float = 0.0) -> None:
    """Puts sides in the place of the real ones; all but ``wrong`` give the picture darkened."""

    def build(name: str, size: object, dtype: torch.dtype, device: str) -> object:
        if name == "absent":
            raise picture_sides.SideUnavailable("it is not installed")

        def call(image: torch.Tensor) -> torch.Tensor:
            time.sleep(seconds)
            return image * (0.5 + 0.1 * (name == wrong))

        return call

    monkeypatch.setattr(picture_sides, "build", build)
    monkeypatch.setattr(picture_contest, "_small_truth", lambda small, device: truth(small))
    monkeypatch.setattr(picture_contest, "flops", lambda *size: 1000)
    picture_contest._truth.cache_clear()


def truth(size: PictureSize) -> torch.Tensor:
    return picture_contest.pictures(size).double() * 0.5


TWO = PictureCase(
    PictureSize("two", "a network", 2, 24, 40), torch.float32, "quick", ("eager", "absent"), 0.5
)


def test_every_side_of_a_picture_is_timed_or_told_why_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictured(monkeypatch)
    found = picture_contest.run(TWO, "cpu", most=3)
    assert list(found["contestants"]) == ["ours", "eager"]
    assert found["contestants"]["ours"]["rounds"] == 3
    assert found["refused"] == {"absent": "it is not installed"}
    assert found["flops"] == 2000
    picture_contest._truth.cache_clear()


def test_a_wrong_picture_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pictured(monkeypatch, wrong="ours")
    with pytest.raises(WrongResult, match="ours: off by"):
        picture_contest.run(TWO, "cpu", most=3)
    pictured(monkeypatch, wrong="eager")
    wrong = dataclasses.replace(TWO, sides=("other", "eager"))
    monkeypatch.setattr(picture_contest, "_truth", lambda size, index, device: half(size, index))
    monkeypatch.setattr(picture_contest, "_error_on_small", lambda case, device: 0.0)
    found = picture_contest.run(wrong, "cpu", most=3)
    assert "off by" in found["refused"]["eager"]


def half(size: PictureSize, index: int) -> torch.Tensor:
    return truth(size)[index : index + 1].float()


def test_a_slow_case_gets_fewer_rounds_and_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    pictured(monkeypatch, seconds=0.1)
    slow = dataclasses.replace(TWO, sides=("eager sdpa", "eager", "compile"), limit=0.25)
    found = picture_contest.run(slow, "cpu", most=50)
    assert list(found["contestants"]) == ["ours", "eager sdpa"]
    # The second calls of the two that always take part go beyond the limit.
    assert found["contestants"]["ours"]["rounds"] == 1
    assert not any("first_call" in side for side in found["contestants"].values())
    assert set(found["refused"]) == {"eager", "compile"}
    slower = picture_contest.run(dataclasses.replace(slow, limit=0.15), "cpu", most=50)
    assert all(side["first_call"] for side in slower["contestants"].values())
    hurried = picture_contest.run(dataclasses.replace(slow, limit=60.0), "cpu", 1, pace=0.4)
    assert list(hurried["contestants"]) == ["ours", "eager sdpa", "eager"]
    assert hurried["refused"] == {"compile": "left out: the run's time was used up"}
    picture_contest._truth.cache_clear()


def test_few_cases_get_the_time_left_on_a_cpu_alone() -> None:
    pace = picture_contest.fitting_pace
    assert pace(60.0, 120.0, "cpu") == pace(60.0, 120.0, "cuda") == 0.5
    assert pace(240.0, 120.0, "cpu") == 2.0
    assert pace(9000.0, 120.0, "cpu") == picture_contest.MOST_PACE
    assert pace(9000.0, 120.0, "cuda") == 1.0
    assert pace(-5.0, 120.0, "cpu") == 0.0


def test_second_calls_are_of_all_sides_alike() -> None:
    first = {"ours": 2.0, "eager sdpa": 3.0, "openvino": 1.0, "eager": 9.0}
    chosen = picture_contest._with_second_calls
    assert chosen(first, left=15.0, limit=40.0) == (list(first), 15.0)
    assert chosen(first, left=7.0, limit=40.0) == (["ours", "eager sdpa", "openvino"], 7.0)
    assert chosen(first, left=1.0, limit=40.0) == (["ours", "eager sdpa"], 5.0)
    assert chosen(first, left=1.0, limit=4.0) == (list(first), 1.0)


def test_memory_is_told_of_right_pictures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    off = {"ours": 0.0, "eager": 1e-4}

    def measured(
        side: str, model: str, dtype: str, width: int, height: int, result: Path
    ) -> object:
        if side == "eager sdpa":
            return {"refused": "took too long"}
        torch.save(torch.full((1, 3, 2, 2), 0.5 + off[side]), result)
        return {"peak_bytes": 2 << 30, "beyond_loaded_bytes": 1 << 30}

    monkeypatch.setattr(picture_memory, "measured", measured)
    found = picture_memory.rows("a network", 8, 8, ("ours", "eager", "eager sdpa"))
    assert list(found) == ["a network 8x8 float32", "a network 8x8 bfloat16"]
    assert found["a network 8x8 float32"]["eager sdpa"] == {"refused": "took too long"}
    off["eager"] = 2e-3  # in 16 bits it may be
    with pytest.raises(WrongResult, match=r"eager: 0.002 from ours, allowed is 0.001"):
        picture_memory.rows("a network", 8, 8, ("ours", "eager"))


def test_operations_of_a_picture_are_those_of_its_layers() -> None:
    network = picture_sides.network("clipweather_tiny", False)
    counted = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        nonlocal counted
        # Of a convolution and of its transpose alike: each weight at each place of the smaller.
        places = min(inputs[0].numel() // inputs[0].shape[1], y.numel() // y.shape[1])
        if isinstance(module, torch.nn.Linear):
            places = y.numel() // y.shape[-1]
        counted += 2 * places * module.weight.numel()  # type: ignore[operator, union-attr]

    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    with torch.no_grad(), picture_sides.pytorch_alone():
        network(torch.rand(1, 3, 64, 128))
    for hook in hooks:
        hook.remove()
    whole = flops("clipweather_tiny", False, 64, 128)
    assert counted < whole < 1.25 * counted  # attention and kernels that no layer holds


def test_the_pictures_cases_are_told_apart() -> None:
    for device in ("cpu", "cuda"):
        cases = bench_pictures.cases(device)
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        assert {case.scope for case in cases} == {"quick", "headline", "full"}
        assert all(case.sides and case.limit > 0 for case in cases)
    cases = bench_pictures.cases("cpu")
    assert any(bench_pictures.second_look(case) for case in cases)
    for scope, most in (("headline", 2), ("full", 20)):
        run = [case for case in cases if scope == "full" or case.scope == scope]
        sides = [side for case in run for side in bench_pictures.sides(case, scope)]
        assert "openvino" in sides
        assert 0 < sum(side.startswith("compile") for side in sides) <= most


def test_a_trace_names_operators_and_their_share_of_the_roof() -> None:
    a, b = torch.rand(64, 256), torch.rand(256, 128)
    with torch.profiler.profile(record_shapes=True, with_flops=True) as profiler:
        (a @ b).relu()
    rates = {"bytes_per_s": 1e9, "flops": 1e15}
    found = picture_trace.lines(profiler.events(), "cpu", rates, itemsize=4)
    product = next(line for line in found if line.name == "aten::mm")
    assert (product.calls, product.flops) == (1, 2 * 64 * 256 * 128)
    assert product.bytes == 4 * (64 * 256 + 2 * 256 * 128)
    assert product.roof == pytest.approx(min(1.0, product.bytes / 1e9 / product.seconds))
    assert sum(line.share for line in found) == pytest.approx(1.0)


def test_a_compiled_side_stays_compiled_while_another_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reset() -> None:
        raise AssertionError("the side built before would compile again while it is timed")

    monkeypatch.setattr(torch._dynamo, "reset", reset)
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    size = PictureSize("two", "clipweather_tiny", 1, 64, 64)
    for name in ("compile", "compile max-autotune"):
        picture_sides.build(name, size, torch.float32, "cpu")


def test_the_performance_pages_tables() -> None:
    files = {**content(), "topic": "pictures_clipweather_base"}
    for case in files["cases"]:  # type: ignore[attr-defined]
        case["size"] = dataclasses.asdict(TWO.size)
        case["matrix"] = True
    text = picture_tables.block([files], results=Path("nowhere"))
    assert "| two | float32 | 20 | 4.00× | – | – | – | 50% |" in text
    assert "TransWeather" not in text
    assert "cut short" not in text
    cut = picture_tables.block([{**files, "complete": False}], results=Path("nowhere"))
    assert "`pictures_clipweather_base.json` is of a run cut short" in cut
    assert picture_tables.block([content()]) == picture_tables.NOTHING


def test_the_performance_pages_table_of_the_baseline_as_people_run_it() -> None:
    files = {**content(), "topic": "pictures_clipweather_base_default_malloc"}
    for case in files["cases"]:  # type: ignore[attr-defined]
        case["size"] = dataclasses.asdict(TWO.size)
        case["matrix"] = True
        contestants = case["contestants"]
        own = contestants["ours"]["median_s"]
        contestants["transweather float32"] = {**contestants["ours"], "median_s": 3 * own}
    text = picture_tables.block([files], results=Path("nowhere"))
    assert "| two | float32 | 100 | 3.00× |" in text
    assert "of the roof" not in text

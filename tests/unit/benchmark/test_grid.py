"""What the benchmark is made of: given acceptance, the outside baseline, pass timing, stages, memory, the figure."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recyclegpt.benchmark import SimulatedAcceptance, bytes_ratio, step_breakdown
from recyclegpt.benchmark.ceilings import PassTimer, backbone_bytes, byte_ceiling, draft_bytes
from recyclegpt.benchmark.grid import BenchConfig, bench
from recyclegpt.benchmark.speed import decode, interleave
from recyclegpt.benchmark.tables import PARTS, ROWS, cost_tables, text_tables
from recyclegpt.benchmark.transformers_baseline import in_transformers, make_runs
from recyclegpt.decoding import Autoregressive, Decoder, Verified
from recyclegpt.hardware.measure import CopyTimer, PeakMemory, peak_memory_bytes
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.reporting.figure import draw_png
from recyclegpt.reporting.figures import bench_figure


@pytest.fixture
def model() -> RecycleGPT:
    torch.manual_seed(0)
    config = ModelConfig(64, 96, num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2)
    model = RecycleGPT(config, RecycleConfig(num_layers=1)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_given_acceptance_is_what_is_kept(model: RecycleGPT) -> None:
    decoder, prompts = Decoder.optimised(model), [[1, 2, 3]] * 9
    for rates, expected in (
        ([0.0], [0, 0, 0]),
        ([0.6], [0.6, 0.36, 0.216]),  # leading runs: the k-th drafted token is kept if all before it are
        ([0.8, 0.5, 1.0], [0.8, 0.4, 0.4]),
    ):
        counts = decode(decoder, prompts, SimulatedAcceptance(3, rates=tuple(rates)), 80).counts
        assert counts.acceptance_by_position == pytest.approx(expected, abs=0.04)
        assert counts.acceptance == pytest.approx(sum(expected) / 3, abs=0.03)
        assert counts.num_tokens == 9 * 80
    own = decode(decoder, prompts, Verified(3), 80).counts.acceptance
    assert own is not None
    assert own < 0.5, "random weights agree by themselves: the test would see no difference"


@torch.no_grad()
def test_baseline_has_the_backbones_weights_and_text(model: RecycleGPT) -> None:
    tokens = torch.randint(64, (2, 30))
    torch.testing.assert_close(
        in_transformers(model)(tokens).logits, model.logits(model.backbone_states(tokens)), rtol=1e-4, atol=1e-4
    )
    prompts = torch.randint(64, (2, 12)).tolist()
    expected = Decoder(model).generate(prompts, Autoregressive(), 9).tokens
    written = in_transformers(model).generate(torch.tensor(prompts), max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert written[:, 12:].tolist() == expected
    for name, run in make_runs(model, prompts, 9, batch=2).items():
        if name != "static compiled":  # compiled once in the integration tests
            result = run()
            assert result.num_timed == 2 * 8, "the first token of a row is the prompt's pass"
            assert 0 < result.seconds < 60
            assert result.first_token_s > 0


def test_pass_timer_measures_what_the_decoder_runs(model: RecycleGPT) -> None:
    calls: list[tuple[str, int]] = []
    now = itertools.count()
    decoder = Decoder(model)
    read, recycle = decoder.backbone_states, decoder.recycle
    decoder.backbone_states = lambda tokens, *args, **kwargs: (
        calls.append(("read", tokens.shape[1])) or read(tokens, *args, **kwargs)
    )
    decoder.recycle = lambda tokens, *args, **kwargs: (
        calls.append(("recycle", tokens.shape[1])) or recycle(tokens, *args, **kwargs)
    )
    timer = PassTimer(decoder, 3, position=20, batch=2, clock=lambda: float(next(now)))
    calls.clear()
    timer.measure(1)
    assert list(dict.fromkeys(calls)) == [("read", 1), ("read", 4), ("recycle", 4), ("recycle", 1)]
    assert timer.costs().verify_cost == timer.costs().draft_cost == 1, "every pass took one tick"


def test_bytes_of_a_fused_model_are_those_of_the_plain_one(model: RecycleGPT) -> None:
    fused = Decoder.optimised(model, torch.float32).model
    # the packed head is padded to a multiple of 16 outputs, which 64 is already
    assert backbone_bytes(fused) == backbone_bytes(model)
    assert draft_bytes(fused, 3) == draft_bytes(model, 3)
    assert bytes_ratio(fused) == bytes_ratio(model)
    halved = Decoder.optimised(model, torch.bfloat16).model
    assert 2 * backbone_bytes(halved) == backbone_bytes(model)
    assert byte_ceiling(halved, 2, 0.5) == pytest.approx(2 / (1 + 2 * bytes_ratio(model)))


def test_stages_add_up_to_a_generation(model: RecycleGPT) -> None:
    decoder = Decoder.optimised(model)
    seconds = step_breakdown(decoder, [[1, 2, 3]], Verified(2), 40)
    assert tuple(seconds) == PARTS
    assert all(seconds[stage] > 0 for stage in ("backbone", "head", "module", "sampling"))
    run = decode(decoder, [[1, 2, 3]], Verified(2), 40)
    # A loose bound, since the machine may be busy: what it catches is a stage counted twice or a wrong unit.
    assert 0.1 < sum(seconds.values()) / (run.seconds / run.num_passes) < 10


def test_rows_of_a_grid(model: RecycleGPT) -> None:
    config = BenchConfig(num_recycled=(1, 2), batch=(1, 4), prompt_tokens=(5,), new_tokens=(8,), repetitions=2)
    asked: list[tuple[int, int]] = []

    def prompts(number: int, length: int) -> list[list[int]]:
        asked.append((number, length))
        return torch.randint(64, (number, length)).tolist()

    groups = list(bench(Decoder.optimised(model), config, prompts))
    assert asked == [(2, 5), (8, 5)]
    assert [row["batch"] for rows in groups for row in rows] == [1] * 5 + [4] * 5
    for row in itertools.chain(*groups):
        assert row["bandwidth_share"] > 0
        assert row["peak_memory_bytes"] > 0
    without = RecycleGPT(model.config).eval()
    rows = next(bench(Decoder.optimised(without), config, prompts))
    assert [row["strategy"] for row in rows] == ["autoregressive"], "a model without module has nothing else"


def test_interleaving_calls_each_in_turn() -> None:
    order: list[str] = []

    def named(name: str) -> object:
        return lambda: order.append(name)

    interleave({"a": named("a"), "b": named("b")}, 2, after_round=named("|"))  # type: ignore[dict-item,arg-type]
    assert order == ["a", "b", "|", "a", "b", "|"]


def test_copy_bandwidth_counts_both_directions() -> None:
    device = torch.device("cpu")
    size = 32 * 2**20
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    samples = []
    for _ in range(9):
        begin = time.perf_counter()
        target.copy_(source)
        samples.append(time.perf_counter() - begin)
    # Two measurements of one machine: far apart only if bytes were counted wrongly (or another unit was used).
    timer = CopyTimer(device, size)
    timer.measure(9)
    assert 0.2 < timer.bytes_per_s / (2 * size / sorted(samples)[4]) < 5


def test_peak_memory_is_of_the_block_alone() -> None:
    device = torch.device("cpu")
    big = torch.ones(200 * 2**20 // 4)
    with PeakMemory(device) as with_big:
        big.add_(1)
    del big
    with PeakMemory(device) as after:
        torch.ones(4)
    assert with_big.bytes > 200 * 2**20
    if Path("/proc/self/clear_refs").exists():
        assert after.bytes < with_big.bytes - 100 * 2**20
    assert peak_memory_bytes(device) > 2**20


def test_peak_memory_of_a_gpu_that_nothing_has_used_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("torch.cuda.init", lambda: calls.append("init"))
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: calls.append(f"reset {device}"))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _: 7)
    with PeakMemory(torch.device("cuda:0")) as peak:
        assert calls == ["init", "reset cuda:0"]
    assert peak.bytes == 7


def test_figure_draws_every_group_but_the_baseline_alone(tmp_path: Path, model: RecycleGPT) -> None:
    config = BenchConfig(num_recycled=(1, 2), batch=(1, 2), prompt_tokens=(5,), new_tokens=(8,), repetitions=1)
    groups = bench(Decoder.optimised(model), config, lambda n, t: torch.randint(64, (n, t)).tolist())
    rows = [{"dtype": "float32", "recycle_num_layers": 1} | row for row in itertools.chain(*groups)]
    document = {"rows": rows, "hardware": {"device": "a test"}}
    draw_png(bench_figure(document), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    alone = {**document, "rows": document["rows"][:1]}
    assert not bench_figure(alone).panels, "a baseline alone is no comparison"


def test_a_module_costs_autoregressive_decoding_nothing(model: RecycleGPT) -> None:
    """Operator for operator: the same calls, in the same order, as in a model that never had a module."""
    without = RecycleGPT(model.config).eval()
    calls: list[list[str]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls[-1].append(str(func))
            return func(*args, **(kwargs or {}))

    for each in (model, without):
        decoder = Decoder.optimised(each)
        calls.append([])
        with Recorder():
            decoder.generate([[1, 2, 3]], Autoregressive(), 10)
    assert calls[0] == calls[1]
    assert "recyclegpt.linear.default" in calls[0]


def test_ranks_say_what_decoding_accepts(model: RecycleGPT) -> None:
    """The share that ranks first is the acceptance rate of the token drafted first, the text being the backbone's."""
    prompts = torch.randint(64, (6, 5)).tolist()
    decoder = Decoder(model)
    run = decode(decoder, prompts, Autoregressive(), 60)
    tables = text_tables(model, prompts, run.texts, 2, torch.arange(5000))
    for shares in tables["ranks"]:
        assert sum(shares) == pytest.approx(1)
    drafted = [torch.tensor([[*prompt, *text]]) for prompt, text in zip(prompts, run.texts, strict=True)]
    agreed = []
    for row in drafted:
        (state,) = model.states(torch.stack([row[:, :-2], row[:, 1:-1]]), num_unrolled=1).recycled_KBTC
        agreed += (model.logits(state).argmax(-1)[0] == row[0, 2:])[4:-1].tolist()
    assert tables["ranks"][0][0] == pytest.approx(sum(agreed) / len(agreed))
    assert tables["coverage"] == {"4096": 0.0}, "the ids that occur most often are the highest"
    costs = cost_tables(decoder, 20)
    assert list(costs["verify_cost"]) == ["1", *map(str, ROWS)]
    assert list(costs["draft_cost"]) == ["64"]
    assert costs["bandwidth_share"] > 0

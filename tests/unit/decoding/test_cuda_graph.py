"""What a GPU does with a step, proved without one: captured once, checked, replayed, and never asking the host."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from recyclegpt.benchmark import SimulatedAcceptance
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, SamplingConfig, Verified, cuda_graph, decoder
from recyclegpt.decoding.cuda_graph import GraphedStep
from recyclegpt.decoding.drafters import chain
from recyclegpt.decoding.sampling import Sampler
from recyclegpt.decoding.session import Session
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT

from .recorded_graph import RecordedGraph, recorded_graphs
from .test_exactness import random_model

STRATEGIES = [Autoregressive(), Alternating(3), Verified(1), Verified(3, confidence_threshold=0.5)]
SAMPLINGS = [
    SamplingConfig(),
    SamplingConfig(repetition_penalty=1.3),
    SamplingConfig(temperature=1.0, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
]


@pytest.fixture
def on_graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Decoders of the test run as on CUDA: graphs, a look every few steps, buckets, no questions."""
    monkeypatch.setattr(chain, "EARLY_EXIT_DEVICES", ())
    monkeypatch.setattr(decoder, "CHECK_EVERY", {"cpu": 3})
    monkeypatch.setattr(decoder, "CHECK_EVERY_WITHOUT_STOPS", {"cpu": 5})
    monkeypatch.setattr(decoder, "READ_BUCKETS", {"cpu": 16})
    monkeypatch.setattr(decoder, "SLOTS_OF_GRAPHS", 32)
    with recorded_graphs(monkeypatch) as graphs:
        yield graphs


def graphed(model: RecycleGPT) -> Decoder:
    made = Decoder(model)
    made.use_graphs = True
    return made


def test_a_step_runs_once_a_call_and_is_captured_once_a_shape(on_graphs: type[RecordedGraph]) -> None:
    total, python_runs = torch.zeros(()), []

    def cycle(num_slots_read: int) -> None:
        python_runs.append(num_slots_read)
        total.add_(num_slots_read)

    run = GraphedStep(cycle)
    for call, num_slots_read in enumerate([1, 1, 1, 1, 100, 100, 1, 100], start=1):
        run(num_slots_read)
        assert total == sum([1, 1, 1, 1, 100, 100, 1, 100][:call])
    assert python_runs == [1, 1, 100, 100], "a first run and a capture of each"
    assert (on_graphs.made, on_graphs.replays) == (2, 6)


@pytest.mark.parametrize(
    ("strategy", "sampling"),
    list(itertools.product(STRATEGIES, [SAMPLINGS[0], SAMPLINGS[2]])),
    ids=str,
)
def test_replayed_steps_write_what_running_them_writes(
    strategy: Any, sampling: SamplingConfig, on_graphs: type[RecordedGraph]
) -> None:
    model = random_model(3, depth=2)
    ours, plain = graphed(model), Decoder(model)
    for prompts, num_tokens, stops, seed in (
        ([[1, 2, 3]], 20, [], 0),
        ([[4]], 22, [], 1),  # the same session again, with other text in its caches
        ([[1, 2, 3], [5], [6, 7, 8, 9, 1]], 18, [3, 11], 2),
    ):
        wanted = plain.generate(prompts, strategy, num_tokens, sampling, stops, seed)
        found = ours.generate(prompts, strategy, num_tokens, sampling, stops, seed)
        assert found.tokens == wanted.tokens
        assert found.drafted == wanted.drafted
        assert found.finish == wanted.finish
        assert found.counts.num_accepted == wanted.counts.num_accepted
    assert on_graphs.replays > 2 * on_graphs.made > 0, "hardly anything was replayed"


def test_the_last_steps_are_not_run_in_vain(on_graphs: type[RecordedGraph]) -> None:
    model = random_model(5)
    for strategy in (Autoregressive(), Alternating(2)):
        ours = graphed(model).generate([[1, 2]], strategy, 31).counts
        assert ours.num_backbone_passes == Decoder(model).generate([[1, 2]], strategy, 31).counts.num_backbone_passes


def test_a_stream_that_is_not_done_keeps_its_session(on_graphs: type[RecordedGraph]) -> None:
    model = random_model(7)
    ours, wanted = graphed(model), Decoder(model).generate([[1, 2]], Verified(1), 30).tokens
    for strategy in (Verified(1), Autoregressive(), Verified(1)):
        ours.generate([[3]], strategy, 30)
    assert len(ours._idle) == 2, "decoders that take turns find their graphs again"
    streams = [
        ours.stream([[1, 2]], Verified(1), 30, Sampler.seeded(SamplingConfig(), 1, 0, model.device)) for _ in range(2)
    ]
    texts: list[list[int]] = [[], []]
    for pair in itertools.zip_longest(*streams):
        for text, emitted in zip(texts, pair, strict=True):
            text += emitted.tokens
    assert texts == [wanted[0], wanted[0]]


def test_idle_sessions_are_let_go_when_many(on_graphs: type[RecordedGraph]) -> None:
    model = random_model(7)
    ours = graphed(model)
    for batch in range(1, decoder.MAX_IDLE + 3):
        ours.generate([[1]] * batch, Autoregressive(), 4)
    assert len(ours._idle) == decoder.MAX_IDLE


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "penalised", "sampled"])
@pytest.mark.parametrize("strategy", [*STRATEGIES, SimulatedAcceptance(2, rates=(0.6,))], ids=str)
def test_no_step_asks_for_a_value(strategy: Any, sampling: SamplingConfig) -> None:
    """On the meta device there are no values: whoever asks for one fails."""
    config = ModelConfig(64, 96, num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2)
    with torch.device("meta"):
        model = RecycleGPT(config, RecycleConfig(num_layers=2)).eval()
    running = Session(model, strategy, Sampler(sampling, [torch.Generator()] * 3), 3, 64)
    with torch.no_grad():
        running.step(32)


class Curious(Verified):
    """Looks at the device in the middle of a step."""

    def verify(self, *args: Any) -> Any:
        accepted_B, token_B = super().verify(*args)
        return (accepted_B, token_B) if int(token_B[0]) >= 0 else (token_B, accepted_B)


class LosesWork(RecordedGraph):
    """A graph that leaves out the last operators of what was captured."""

    def replay(self) -> None:
        calls, self.calls = self.calls, self.calls[:-5]
        super().replay()
        self.calls = calls


@pytest.mark.parametrize(
    ("strategy", "graph", "reason", "sampling"),
    [
        (Curious(1), RecordedGraph, "capturing failed", SAMPLINGS[0]),
        (Verified(2), LosesWork, "the first replayed step differed", SAMPLINGS[2]),
        (Autoregressive(), LosesWork, "the first replayed step differed", SAMPLINGS[0]),
    ],
)
def test_a_graph_that_fails_or_differs_falls_back_to_eager_steps_with_one_warning(
    strategy: Any,
    graph: type[RecordedGraph],
    reason: str,
    sampling: SamplingConfig,
    on_graphs: type[RecordedGraph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    cuda_graph._warn.cache_clear()
    model = random_model(1)
    wanted = [Decoder(model).generate([[1, 2]] * batch, strategy, 20, sampling, seed=3).tokens for batch in (1, 2)]
    ours = graphed(model)
    with pytest.warns(UserWarning, match=reason) as caught:
        found = [ours.generate([[1, 2]] * batch, strategy, 20, sampling, seed=3).tokens for batch in (1, 2)]
    assert found == wanted
    assert len(caught) == 1


def test_a_correct_graph_passes_its_check(on_graphs: type[RecordedGraph]) -> None:
    """Simulated acceptance has a state of its own, which the check has to restore too."""
    model = random_model(1)
    for sampling in (SAMPLINGS[0], SAMPLINGS[2]):
        ours, plain = SimulatedAcceptance(3, rates=(0.6,)), SimulatedAcceptance(3, rates=(0.6,))
        found = graphed(model).generate([[1, 2]], ours, 40, sampling)
        wanted = Decoder(model).generate([[1, 2]], plain, 40, sampling)
        assert found.tokens == wanted.tokens
        assert found.counts == wanted.counts
        assert on_graphs.replays > 0

"""What the parts of a GPU report call, and how long each call is expected to take."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from recyclegpt.cli.gpu_report_calls import COMPLETE, Call, Record
from recyclegpt.cli.gpu_report_run import RUN_EXPECTED_S, plan_run, train_settings
from recyclegpt.cli.gpu_report_run import SHAPE as RUN_SHAPE

SHAPES = ("gpt_125m", "gpt_350m", "paper_1b3")
PAPER = "paper_1b3"
DEPTH = {"gpt_125m": 2, "gpt_350m": 2, PAPER: 6}
"""Layers of the module where only one depth is measured."""
STEP_BATCH = {"gpt_125m": 64, "gpt_350m": 32, PAPER: 8}
"""Rows of a training step: enough to keep the matrix units busy, few enough for 80 GB."""
TINY = ("model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.intermediate_size=64")
"""What makes any shape a matter of seconds on a CPU."""

EXPECTED_S: Mapping[str, float] = {
    "environment/doctor": 7,
    "environment/machine": 7,
    "checks/checks": 45,
    "kernels/kernels": 25,
    "decode/baseline": 55,
    "decode/depths-gpt_125m": 15,
    "decode/depths-gpt_350m": 15,
    "decode/depths-paper_1b3": 20,
    "decode/batches-gpt_125m": 8,
    "decode/batches-gpt_350m": 8,
    "decode/batches-paper_1b3": 12,
    "training/gpt_125m": 25,
    "training/gpt_350m": 20,
    "training/paper_1b3": 30,
    "train/corpus": 60,
    "train/run": RUN_EXPECTED_S,
    "trained/bench": 45,
    "trained/evaluate": 25,
}
"""Seconds on an H200-class card: estimates, until one has been seen."""


@dataclass
class Setting:
    """What the calls depend on."""

    out: Path
    device: str
    smoke: bool
    budget_s: float
    train_s: float
    code: str
    left_s: Callable[[], float]
    """Seconds left of the budget."""
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    """What has been measured so far."""

    def call(self, part: str, name: str, *argv: str, **facts: object) -> Call:
        """A call with what it is expected to take."""
        return Call(part, name, argv, EXPECTED_S[f"{part}/{name}"], dict(facts))

    def document(self, part: str, name: str) -> Mapping[str, object] | None:
        """What a complete call has printed."""
        record = self.records.get((part, name))
        return record.document if record is not None and record.status == COMPLETE else None

    @property
    def shapes(self) -> tuple[str, ...]:
        """All of them; of a smoke run the first stands for the others."""
        return SHAPES[:1] if self.smoke else SHAPES

    @property
    def own(self) -> tuple[str, ...]:
        """Settings of this command that its own measurements take over."""
        return (f"device={self.device}", f"smoke={str(self.smoke).lower()}")


def environment(setting: Setting) -> Iterator[Call]:
    """What is measured on, and what it can do at best."""
    argv = ("doctor", str(setting.out), "--json")
    # 1: it has found a problem, and says so in its document.
    yield Call("environment", "doctor", argv, EXPECTED_S["environment/doctor"], good=(0, 1))
    yield setting.call("environment", "machine", "gpu-report", "measure=machine", *setting.own)


def checks(setting: Setting) -> Iterator[Call]:
    """Fast paths against their slow twins, before anything is said of how fast they are."""
    yield setting.call("checks", "checks", "gpu-report", "measure=checks", *setting.own)


def kernels(setting: Setting) -> Iterator[Call]:
    """Every decoding kernel by itself."""
    yield setting.call("kernels", "kernels", "gpu-report", "measure=kernels", *setting.own)


def decode(setting: Setting) -> Iterator[Call]:
    """Decoders beside their ceilings. What the targets are about comes first, in one run with the outside baseline."""
    missing = why_no_baseline(setting)
    outside = [] if missing else ["bench.baselines=[transformers]"]
    call = _bench(setting, "baseline", PAPER, f"recycle.num_layers={DEPTH[PAPER]}", "bench.stages=true", *outside)
    yield replace(call, facts=call.facts | {"note": f"transformers was not measured: {missing}."}) if missing else call
    depths, recycled = ("[1,6]", "[1,2]") if setting.smoke else ("[1,2,6]", "[1,2,4]")
    for shape in setting.shapes:
        lists = (f"bench.recycle_num_layers={depths}", f"bench.num_recycled={recycled}", "bench.stages=false")
        yield _bench(setting, f"depths-{shape}", shape, *lists)
    batches = "[1,2]" if setting.smoke else "[1,4,16,64]"
    for shape in setting.shapes:
        lists = (f"recycle.num_layers={DEPTH[shape]}", f"bench.batch={batches}", "bench.strategies=[alternating]")
        yield _bench(setting, f"batches-{shape}", shape, *lists, "bench.stages=false")


def why_no_baseline(setting: Setting) -> str | None:
    """Why `transformers` is not measured too; None: it is."""
    if setting.smoke:
        return "compiling takes too long for a smoke run"
    return None if importlib.util.find_spec("transformers") else "it is not installed; pip install 'recyclegpt[hf]'"


def _bench(setting: Setting, name: str, shape: str, *argv: str) -> Call:
    size = (*TINY, "bench.vocab_size=64", "bench.prompt_tokens=8", "bench.new_tokens=12", "bench.repetitions=1")
    full = ("bench.dtype=bfloat16", "bench.prompt_tokens=128", "bench.new_tokens=128", "bench.repetitions=3")
    argv = (
        "bench", f"model={shape}", f"device={setting.device}", *(size if setting.smoke else full),
        "bench.num_prompts=1", "bench.acceptance=0.8", *argv, f"bench.output={_quoted(setting.out / 'decode' / name)}",
    )  # fmt: skip
    return setting.call("decode", name, *argv, shape=shape, call=name.partition("-")[0])


def training(setting: Setting) -> Iterator[Call]:
    """Steps of training on random tokens, with and without module."""
    tiny = (*TINY, "bench.vocab_size=64", "step.batch=2", "step.row_length=16", "step.repetitions=2")
    for shape in setting.shapes:
        size = tiny if setting.smoke else (f"step.batch={STEP_BATCH[shape]}",)
        folder = setting.out / "training" / shape
        argv = (
            "bench", "training=true", f"model={shape}", f"recycle.num_layers={DEPTH[shape]}",
            f"device={setting.device}", *size, "step.accumulate=2", "step.profile=true",
            f"bench.output={_quoted(folder)}",
        )  # fmt: skip
        yield setting.call("training", shape, *argv, shape=shape, folder=str(folder))


def train(setting: Setting) -> Iterator[Call]:
    """A real run: its corpus is made first, so that what is left of the budget is known."""
    yield setting.call("train", "corpus", "gpu-report", "measure=corpus", *setting.own)
    corpus = setting.document("train", "corpus")
    if corpus is None:
        return
    # What `trained` needs is not given away: with less than both left, the run is not begun.
    reserve_s = sum(seconds for name, seconds in EXPECTED_S.items() if name.startswith("trained/"))
    left_s = setting.left_s() - reserve_s
    speed = None if setting.smoke else setting.document("training", RUN_SHAPE)
    planned = plan_run(
        setting.out / "train", setting.code, train_settings(setting.device, setting.smoke), corpus, speed,
        min(setting.train_s, left_s),
    )  # fmt: skip
    expected_s = planned.seconds if planned.seconds <= left_s else planned.seconds + reserve_s
    facts = {"folder": str(planned.folder), "note": planned.note}
    yield Call("train", "run", planned.argv, expected_s, facts, reserve_s=reserve_s)


def trained(setting: Setting) -> Iterator[Call]:
    """The model of that run on held-out prompts. One that was stopped at its limit has a checkpoint too."""
    run = setting.records.get(("train", "run"))
    folder = None if run is None else Path(run.facts["folder"])
    if run is None or folder is None or not any((folder / "checkpoints").glob("*.ckpt")):
        return
    recycled = "[1,2]" if setting.smoke else "[1,2,3,4,6]"
    lengths = (
        ("bench.prompt_tokens=8", "bench.new_tokens=12", "bench.repetitions=1", "bench.num_prompts=1")
        if setting.smoke
        else ("bench.dtype=bfloat16", "bench.prompt_tokens=128", "bench.new_tokens=192", "bench.repetitions=3",
              "bench.num_prompts=4")
    )  # fmt: skip
    where = (f"checkpoint={_quoted(folder)}", f"device={setting.device}")
    output = f"bench.output={_quoted(setting.out / 'trained' / 'bench')}"
    facts = {"run": run.status, "shape": "trained"}
    yield setting.call("trained", "bench", "bench", *where, f"bench.num_recycled={recycled}", *lengths, output, **facts)
    yield setting.call("trained", "evaluate", "evaluate", *where, **facts)


PARTS: Mapping[str, Callable[[Setting], Iterator[Call]]] = {
    "environment": environment,
    "checks": checks,
    "kernels": kernels,
    "decode": decode,
    "training": training,
    "train": train,
    "trained": trained,
}
"""In the order in which they run; each finds in `Setting.records` what those before it have measured."""


def _quoted(path: Path) -> str:
    """As Hydra's grammar wants a path that may hold anything."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"

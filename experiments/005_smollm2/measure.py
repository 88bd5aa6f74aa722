"""The whole measurement of SmolLM2-135M-Instruct with a trained module, on a machine that does nothing else.

    python measure.py MODEL.gguf --module FOLDER --tune FILE --prompts FILE --out FOLDER --peers PYTHON FOLDER

takes some 20 minutes on two cores; `--prompts-each 80 --repetitions 3` measures everything.

`choose` picks the draft length of every drafter on tuning prompts. `speed` and `sampled` (temperature 0.7) decode the
other prompts with those, other engines in turn with ours (`peers.py`). `waterfall` adds one lever after the other.
`quality`, `fails` and `rests` are what else the experiment asks. Every prompt's measurement is a line in a file of OUT,
from which the same command continues; OUT/results.json and results.csv hold the tables. With `--sections` some alone.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peers import peer_rows
from quality import judge_texts
from waterfall import draw, levers, looked_up, predicted

from recyclegpt.benchmark.prompt_set import Contender, Texts, decode_rounds, fit_prompts, prompt_rows
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.data.prompts import Prompt, encode_prompts, read_prompts
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, SamplingConfig, Strategy, make_strategy
from recyclegpt.files import write_json
from recyclegpt.hardware.device import ExternalCpuLoad, is_contended, measured_on

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECTIONS = ("choose", "speed", "sampled", "waterfall", "quality", "fails", "rests")
DTYPES = ("bfloat16", "int8")
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
LENGTHS = {"module": (1, 2, 3, 4), "ngram": (2, 3, 5), "ngram+module": (2, 3, 4)}
ADAPTIVE = (4, 7)
"""Most drafted tokens where their number is adaptive."""
Row = dict[str, Any]
COLUMNS = (
    "section", "engine", "category", "dtype", "strategy", "drafter", "num_recycled", "adaptive", "draft_vocab",
    "tokens_per_s", "speedup", "speedup_spread", "speedup_interval", "mean_accepted_length", "acceptance_by_position",
    "equal", "repetitive", "num_prompts", "lever", "predicted", "backbone_nll",
)  # fmt: skip


class Measurement:
    """A model with its module, decoders of it, and the folder of results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.trained = load_trained(arguments.model, module=arguments.module)
        self.decoders: dict[str, Decoder] = {}
        self.chosen: dict[str, dict[str, Strategy]] = {}
        file = self.out / "results.json"
        self.results: Row = json.loads(file.read_text()) if file.exists() else {"sections": {}}

    def contender(self, dtype: str, strategy: Strategy) -> Contender:
        if dtype not in self.decoders:
            kind = {"bfloat16": torch.bfloat16, "int8": torch.int8}[dtype]
            self.decoders[dtype] = Decoder.optimised(self.trained.model, kind, draft_dtype=torch.int8)
        about = {"dtype": dtype, "draft_vocab": self.trained.model.recycle_config.draft_vocab}
        return Contender(self.decoders[dtype], strategy, about)

    def best(self, dtype: str, *drafters: str) -> list[Contender]:
        """Autoregressive decoding, then each drafter with the length that was best on the tuning prompts."""
        if not self.chosen:
            chosen = json.loads((self.out / "chosen.json").read_text())
            self.chosen = {
                kind: {name: make_strategy("verified", **given) for name, given in of.items()}
                for kind, of in chosen.items()
            }
        strategies = [self.chosen[dtype][drafter] for drafter in drafters or LENGTHS]
        return [self.contender(dtype, strategy) for strategy in [Autoregressive(), *strategies]]

    def prompts(self, file: Path, each: int | None) -> list[Prompt]:
        """`each` of every category, MT-bench's eight being one."""
        taken: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in read_prompts(file, as_chats=True):
            category = "mt_bench" if prompt.category in MT_BENCH else prompt.category
            taken[category].append(prompt._replace(category=category))
        return [prompt for of in taken.values() for prompt in of[:: max(1, len(of) // (each or len(of)))][:each]]

    def decode(
        self, name: str, contenders: Sequence[Contender], prompts: Sequence[Prompt], repetitions: int = 1,
        sampling: SamplingConfig | None = None, batch: int = 1, new_tokens: int | None = None,
    ) -> list[Row]:  # fmt: skip
        """Rows of a table, kept as `name`."""
        tokenizer, room = self.trained.tokenizer, new_tokens or self.arguments.new_tokens
        rows = encode_prompts(tokenizer, prompts, "characters")
        rows = fit_prompts(rows, self.trained.model.config.context_length, room, tokenizer.eos_id)
        by_category: dict[str, list[list[int]]] = defaultdict(list)
        for prompt, row in zip(prompts, rows, strict=True):
            by_category[prompt.category if batch == 1 else "all"].append(row)
        texts = Texts(room, tuple(tokenizer.stop_ids), sampling or SamplingConfig(), batch, repetitions, seed=1)
        header = {
            "decoders": [one.about | {"label": one.strategy.label} for one in contenders],
            "texts": dataclasses.asdict(texts) | {"repetitions": None},
            "prompts": by_category,
        }
        with ExternalCpuLoad() as load:
            rounds = decode_rounds(contenders, by_category, texts, self.out / f"{name}.jsonl", header)
        found = prompt_rows(contenders, rounds)
        self.keep(name, found, measured_on(torch.device("cpu"), load.share))
        for row in found:
            if row["category"].startswith("overall"):
                tau = row["mean_accepted_length"]
                print(f"{name}: {row['category']} {row['dtype']} {row['strategy']} {row['drafter'] or ''} "
                      f"{row['num_recycled']}{' adaptive' if row['adaptive'] else ''}: {row['tokens_per_s']:.1f} "
                      f"tokens/s, {row['speedup']:.2f}x, {tau:.2f} a pass, equal {row['equal']:.2f}")  # fmt: skip
        return found

    def keep(self, name: str, rows: list[Row], hardware: Row | None = None, **more: Any) -> None:
        self.results["sections"][name] = {"rows": rows, "hardware": hardware, **more}
        write_json(self.out / "results.json", self.results)
        with (self.out / "results.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
            writer.writeheader()
            for section, found in self.results["sections"].items():
                for row in found["rows"]:
                    cells = {key: _cell(value) for key, value in row.items()}
                    writer.writerow({"engine": "recyclegpt", **cells, "section": section})

    def command(self, name: str, *words: str) -> None:
        """A command of the project on the same model; its document is kept as `name`."""
        module = [] if self.arguments.module is None else [f"module={self.arguments.module}"]
        model = [] if "model=gpt_125m" in words else [f"checkpoint={self.arguments.model}", *module]
        line = [sys.executable, "-m", "recyclegpt", words[0], *model, *words[1:]]
        print("$", *line)
        ran = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
        (self.out / f"{name}.txt").write_text(ran.stdout)
        if ran.returncode:
            print(f"{name} ended with {ran.returncode}")
        else:
            self.keep(name, [], document=json.loads(ran.stdout.splitlines()[-1]))


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(f"{number:.4g}" for number in value)
    return f"{value:.5g}" if isinstance(value, float) else value


def choose(it: Measurement) -> None:
    contenders = []
    for dtype in DTYPES:
        contenders.append(it.contender(dtype, Autoregressive()))
        for drafter, lengths in LENGTHS.items():
            kinds = [(m, False) for m in lengths] + [(m, True) for m in ADAPTIVE if drafter != "ngram"]
            made = [make_strategy("verified", m, drafter=drafter, adaptive=adaptive) for m, adaptive in kinds]
            contenders += [it.contender(dtype, strategy) for strategy in made]
    rows = it.decode(
        "choose",
        contenders,
        it.prompts(it.arguments.tune, it.arguments.tune_each),
        new_tokens=min(128, it.arguments.new_tokens),
    )
    chosen: dict[str, dict[str, Row]] = {dtype: {} for dtype in DTYPES}
    for row in sorted((row for row in rows if row["category"] == "overall"), key=lambda row: row["speedup"]):
        if row["drafter"]:
            given = {key: row[key] for key in ("num_recycled", "drafter", "adaptive")}
            chosen[row["dtype"]][row["drafter"]] = given  # the fastest is the last
    write_json(it.out / "chosen.json", chosen)


def speed(it: Measurement) -> None:
    prompts = it.prompts(it.arguments.prompts, it.arguments.prompts_each)
    alternating = [it.contender("bfloat16", Alternating(m)) for m in (1, 3)]
    contenders = [*it.best("bfloat16"), *alternating, *it.best("int8")]
    asked = it.out / "asked.jsonl"
    asked.write_text(
        "".join(json.dumps({"category": one.category, "prompt": one.messages[0]["content"]}) + "\n" for one in prompts)
    )
    for repetition in range(1, it.arguments.repetitions + 1):
        it.decode("speed", contenders, prompts, repetition)
        if it.arguments.peers is not None:
            python, work = it.arguments.peers
            words = ("measure", work, str(asked), "--out", str(it.out / "peers.jsonl"), "--rounds", str(repetition))
            subprocess.run([python, str(HERE / "peers.py"), *words, "--new", str(it.arguments.new_tokens)], check=False)
            it.keep("peers", peer_rows(it.out / "peers.jsonl"))


def sampled(it: Measurement) -> None:
    contenders = [one for dtype in DTYPES for one in it.best(dtype)]
    prompts = it.prompts(it.arguments.prompts, it.arguments.prompts_each)
    it.decode("sampled", contenders, prompts, it.arguments.repetitions, SamplingConfig(temperature=0.7))


def waterfall(it: Measurement) -> None:
    rows = [row for row in it.results["sections"]["choose"]["rows"] if row["category"] == "overall"]
    lengths = {
        row["drafter"]: row["num_recycled"]
        for row in sorted(rows, key=lambda row: row["speedup"])
        if row["dtype"] == "bfloat16" and not row["adaptive"]
    }
    contenders = levers(it.trained.model, lengths["module"], lengths["ngram+module"])
    rows = it.decode("waterfall", contenders, it.prompts(it.arguments.prompts, it.arguments.prompts_each))
    header, *rounds = map(json.loads, (it.out / "waterfall.jsonl").read_text().splitlines())
    asked = [row for of_category in header["prompts"].values() for row in of_category]
    share = looked_up(asked, [text for one in rounds for text in one["runs"][0]["texts"]])
    overall = [row for row in rows if row["category"] == "overall"]
    overall = [row | predicted(one, row, share) for one, row in zip(contenders, overall, strict=True)]
    it.keep("waterfall", overall, it.results["sections"]["waterfall"]["hardware"], looked_up=share)
    draw(overall, it.out / "waterfall.png")


def quality(it: Measurement) -> None:
    it.keep("texts", judge_texts(it.trained, it.out / "speed.jsonl", it.out / "texts.md"))
    if it.arguments.own is not None:
        words = "data=tokenized", f"data.path={it.arguments.own}", "data.val_batch_size=4"
        it.command("perplexity", "evaluate", *words)
    if it.arguments.tasks is not None:
        blimp, wikitext = it.arguments.tasks
        files = f"task_files.blimp_local={blimp}", f"task_files.wikitext_local={wikitext}"
        limit = f"limit={it.arguments.limit}"
        it.command("tasks", "evaluate", "tasks=[blimp_local,wikitext_local]", *files, limit)


def fails(it: Measurement) -> None:
    """Code, other languages, long contexts, temperature 1, eight prompts at a time."""
    prompts = read_prompts(HERE / "hard_prompts.jsonl", as_chats=True)
    for name in ("decoding", "training", "reliability"):
        text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")[:6000]
        question = f"{text}\n\nSummarize the text above in a few sentences."
        prompts.append(Prompt(question, [{"role": "user", "content": question}], "long context"))
    contenders = it.best("bfloat16")
    it.decode("hard", contenders, prompts)
    asked = it.prompts(it.arguments.prompts, it.arguments.prompts_each)
    it.decode("temperature_1", contenders, asked, sampling=SamplingConfig(temperature=1.0))
    it.decode("batch_8", contenders, asked[:16], batch=8)


def rests(it: Measurement) -> None:
    prompts = it.prompts(it.arguments.tune, it.arguments.tune_each)
    for temperature in (0.7, 1.0):
        for coupled in (True, False):
            ways = [make_strategy("verified", 3, drafter=name) for name in ("module", "ngram+module")]
            contenders = [it.contender("bfloat16", one) for one in (Autoregressive(), *ways)]
            name = f"{'coupled' if coupled else 'rejection'}_{temperature:g}"
            it.decode(name, contenders, prompts, sampling=SamplingConfig(temperature, coupled=coupled))
    ways = [make_strategy("verified", m, adaptive=adaptive) for m in (3, 7) for adaptive in (False, True)]
    it.decode("adaptive", [it.contender("bfloat16", one) for one in (Autoregressive(), *ways)], prompts)
    for batch in (8, 16):
        ways = [Alternating(1), Alternating(3), make_strategy("verified", 3)]
        contenders = [it.contender("bfloat16", one) for one in (Autoregressive(), *ways)]
        it.decode(f"alternating_batch_{batch}", contenders, it.prompts(it.arguments.tune, 4), batch=batch)
    length = "bench.prompt_tokens=[512]", "bench.new_tokens=[64]", "bench.dtype=[bfloat16]"
    it.command("transformers", "bench", "model=gpt_125m", "recycle.num_layers=3", *length, "bench.num_prompts=1",
               "bench.baselines=[transformers]", "bench.repetitions=3", "bench.breakdown=false")  # fmt: skip
    it.command("tables", "bench", f"prompts={it.arguments.tune}", "prompt_chat=true", "bench.tables=true",
               "bench.stop_at_end=true", "bench.num_recycled=[5]", "bench.strategies=[verified]",
               "bench.num_prompts=24", "bench.repetitions=1", "bench.dtype=[bfloat16]", "decoding.draft_dtype=int8",
               f"output_dir={it.out / 'tables'}")  # fmt: skip


def check_quiet() -> None:
    with ExternalCpuLoad() as load:
        time.sleep(3)
    if is_contended(load.share):
        sys.exit(f"other programs use {load.share:.0%} of the processors; stop them, or take --busy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the GGUF file, or a run of `adapt`, which has a module")
    parser.add_argument("--module", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="reported")
    parser.add_argument("--tune", type=Path, required=True, help="settings are chosen on these")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers", nargs=2, metavar=("PYTHON", "WORK"), help="see peers.py")
    parser.add_argument("--own", type=Path, help="shards of the backbone's own text")
    parser.add_argument("--tasks", nargs=2, metavar=("BLIMP", "WIKITEXT"), help="see docs/benchmarks.md")
    parser.add_argument("--prompts-each", type=int, default=3, help="of every category; Spec-Bench has six of 80")
    parser.add_argument("--tune-each", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--limit", type=int, default=100, help="examples of a task")
    parser.add_argument("--busy", action="store_true", help="whatever else runs: to try things out")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    arguments = parser.parse_args()
    it = Measurement(arguments)
    for name in arguments.sections:
        if not arguments.busy:
            check_quiet()
        begin = time.monotonic()
        globals()[name](it)
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()

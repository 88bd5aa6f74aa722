"""Speed of other engines on SmolLM2-135M-Instruct: llama.cpp, OpenVINO GenAI and transformers, decoding alone, batch 1.

    python peers.py prepare model.gguf work      # writes the model in the formats of the engines, with recyclegpt[gguf]
    optimum-cli export openvino -m work/hf --task text-generation-with-past --weight-format fp16 work/openvino-fp16
    optimum-cli export openvino -m work/hf --task text-generation-with-past --weight-format int8 work/openvino-int8
    python peers.py measure work prompts.jsonl --out peers.jsonl

`measure` runs in an environment of its own (`requirements-peers.txt`), each engine in a process of its own. A prompt is
a row `{"category": ..., "prompt": ...}`; every engine gets the same text in the chat template, and writes greedily up
to an end token, at most `--new` tokens. `--out` gets a row for every text, `{"engine", "round", "category", "prompt",
"tokens", "seconds"}`: tokens after the first, and their seconds. A round that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GGUF_FORMATS = ("BF16", "Q8_0", "Q4_1")
OPENVINO_FORMATS = ("fp16", "int8")
THREADS = 2
CONTEXT = 8192


def prepare(source: Path, work: Path) -> None:
    """Write `work/hf` (Hugging Face layout) and `work/*.gguf`."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "hf").exists():
        command = ["-m", "recyclegpt", "export", f"checkpoint={source}", "format=llama", f"output_dir={work / 'hf'}"]
        subprocess.run([sys.executable, *command], check=True)
        config = json.loads((work / "hf/config.json").read_text())
        # The name of transformers 4, which optimum still reads.
        config["rope_theta"] = config.get("rope_parameters", config).get("rope_theta", config.get("rope_theta"))
        (work / "hf/config.json").write_text(json.dumps(config, indent=2))
    for kind in GGUF_FORMATS:
        if not (work / f"{kind}.gguf").exists():
            requantise(source, work / f"{kind}.gguf", kind)


def requantise(source: Path, target: Path, kind: str) -> None:
    """The same GGUF file with every matrix in another format."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        wanted = gguf.GGMLQuantizationType[kind if len(tensor.shape) > 1 else "F32"]
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, gguf.quants.quantize(weights, wanted), raw_dtype=wanted)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()


Texts = list[tuple[int, float]]
"""Tokens and seconds of each text after its first token."""


def chat(prompt: str) -> str:
    """SmolLM2's template for one question."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def llama_cpp(work: Path, prompts: list[str], kind: str, new_tokens: int) -> Texts:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(work / f"{kind}.gguf")
    params.n_ctx, params.n_parallel = CONTEXT, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.warmup = True
    server = xllamacpp.Server(params)
    measured = []
    for prompt in prompts:
        asked = {"prompt": chat(prompt), "n_predict": new_tokens, "temperature": 0}
        timings = server.handle_completions({**asked, "cache_prompt": False})["timings"]
        measured.append((timings["predicted_n"] - 1, timings["predicted_ms"] / 1000))
    return measured


class Clock:
    """A stopping criterion that stops nothing and notes the time of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: Any, *_: Any) -> Any:
        self.times.append(time.perf_counter())
        return ids.new_zeros(len(ids), dtype=bool)

    def measured(self, tokens: int) -> tuple[int, float]:
        """Tokens after the first, and their seconds."""
        return tokens - 1, self.times[-1] - self.times[0]


def openvino(work: Path, prompts: list[str], kind: str, new_tokens: int) -> Texts:
    import openvino_genai as genai

    form, _, lookup = kind.partition("-")
    extra = {"prompt_lookup": True} if lookup else {}
    pipe = genai.LLMPipeline(str(work / f"openvino-{form}"), "CPU", INFERENCE_NUM_THREADS=THREADS, **extra)
    config = pipe.get_generation_config()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = new_tokens, False, False
    if lookup:
        config.num_assistant_tokens, config.max_ngram_size = 3, 3
    measured = []
    for prompt in prompts:
        metrics = pipe.generate([chat(prompt)], config).perf_metrics
        first, whole = metrics.get_ttft().mean, metrics.get_generate_duration().mean
        measured.append((metrics.get_num_generated_tokens() - 1, (whole - first) / 1000))
    return measured


def transformers(work: Path, prompts: list[str], kind: str, new_tokens: int) -> Texts:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(work / "hf")
    model = AutoModelForCausalLM.from_pretrained(work / "hf", dtype=torch.bfloat16)
    extra = {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {}
    measured = []
    for prompt in prompts:
        ids = tokenizer(chat(prompt), return_tensors="pt", add_special_tokens=False)["input_ids"]
        clock = Clock()
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False,
            stopping_criteria=[clock], **extra,
        )  # fmt: skip
        measured.append(clock.measured(written.shape[1] - ids.shape[1]))
    return measured


ENGINES = {
    **{f"llama.cpp {kind}": (llama_cpp, kind) for kind in GGUF_FORMATS},
    **{f"OpenVINO {kind}": (openvino, kind) for kind in (*OPENVINO_FORMATS, "fp16-lookup")},
    **{f"transformers {kind}": (transformers, kind) for kind in ("bf16", "lookup")},
}


def measure(arguments: argparse.Namespace) -> None:
    """Every engine in turn, so often."""
    out = arguments.out
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["round"], row["engine"]) for row in known}
    for number in range(1, arguments.rounds + 1):
        for name in ENGINES:
            if (number, name) not in done:
                rest = ["--out", str(out), "--engine", name, "--rounds", str(number), "--new", str(arguments.new)]
                command = [sys.executable, __file__, "one", str(arguments.first), str(arguments.second), *rest]
                subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": str(THREADS)})


def one(arguments: argparse.Namespace) -> None:
    """Measure one engine in round `--rounds`, after a text that warms it up."""
    rows = [json.loads(line) for line in arguments.second.read_text().splitlines()]
    engine, kind = ENGINES[arguments.engine]
    prompts = [row["prompt"] for row in rows]
    measured = engine(arguments.first, [prompts[0], *prompts], kind, arguments.new)[1:]
    with arguments.out.open("a") as file:
        for number, (row, (tokens, seconds)) in enumerate(zip(rows, measured, strict=True)):
            about = {"engine": arguments.engine, "round": arguments.rounds, "category": row["category"]}
            file.write(json.dumps({**about, "prompt": number, "tokens": tokens, "seconds": seconds}) + "\n")
    tokens, seconds = (sum(column) for column in zip(*measured, strict=True))
    print(f"{arguments.engine}: {tokens / seconds:.1f} tokens/s", flush=True)


def peer_rows(file: Path) -> list[dict[str, Any]]:
    """Tokens over seconds of every engine, by category: the median round, and the slowest and fastest."""
    sums: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in map(json.loads, file.read_text().splitlines()):
        for category in (row["category"], "overall"):
            rounds = sums.setdefault((row["engine"], category), {})
            of = rounds.setdefault(row["round"], [0, 0, 0])
            of[:] = of[0] + row["tokens"], of[1] + row["seconds"], of[2] + 1
    found = []
    for (engine, category), rounds in sums.items():
        speeds = [tokens / seconds for tokens, seconds, _ in rounds.values()]
        row = {"engine": engine, "category": category, "tokens_per_s": statistics.median(speeds)}
        found.append(row | {"spread": [min(speeds), max(speeds)], "num_prompts": int(next(iter(rounds.values()))[2])})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("prepare", "measure", "one"))
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--out", type=Path, default=Path("peers.jsonl"))
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--new", type=int, default=256, help="most tokens of a text")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.action == "prepare":
        prepare(arguments.first, arguments.second)
    elif arguments.action == "measure":
        measure(arguments)
    else:
        one(arguments)


if __name__ == "__main__":
    main()

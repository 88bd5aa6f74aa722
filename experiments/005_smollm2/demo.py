"""Answers of SmolLM2-135M-Instruct, decoded autoregressively and verified: the same texts, and how fast they came.

    python experiments/005_smollm2/demo.py MODEL.gguf

Both decoders take turns at each prompt of `demo_prompts.jsonl`, after a warm-up. Speeds are all tokens over all
seconds, prompts included. On a terminal the tokens that the drafter wrote are green. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from recyclegpt import kernels
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.console import paint
from recyclegpt.data.chat import render_chat
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import Counts, Decoder, Generation, StopStrings, TextStreamer, make_strategy
from recyclegpt.models import named_dtype

HERE = Path(__file__).parent


def coloured(tokenizer: TextTokenizer, text: Generation) -> str:
    """The text of the only row, drafted tokens green."""
    pieces = tokenizer.decode_stream(skip_special_tokens=True)
    shown = TextStreamer(StopStrings([], tokenizer.decode), pieces.step, pieces.finish)
    marked = zip(text.tokens[0], text.drafted[0], strict=True)
    parts = [part for token, drafted in marked for part in shown.add(token, drafted)] + shown.end()
    return "".join(paint(piece, "green") if drafted else piece for piece, drafted in parts).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("--module", type=Path, default=HERE / "module")
    parser.add_argument("--prompts", type=Path, default=HERE / "demo_prompts.jsonl")
    parser.add_argument("--drafter", default="ngram+module", help="module, ngram or ngram+module")
    parser.add_argument("--num-recycled", type=int, default=2, help="tokens drafted per backbone pass")
    parser.add_argument("--new-tokens", type=int, default=160, help="most tokens of an answer")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16, float32 or int8")
    arguments = parser.parse_args()

    trained = load_trained(arguments.model, module=arguments.module)
    tokenizer, cpu = trained.tokenizer, torch.device("cpu")
    dtype = named_dtype(arguments.dtype, cpu, decoding=True)
    draft_dtype = torch.int8 if kernels.usable(cpu, dtype) else None
    decoder = Decoder.optimised(trained.model, dtype, release=True, draft_dtype=draft_dtype)
    verified = make_strategy("verified", arguments.num_recycled, drafter=arguments.drafter)
    strategies = {"autoregressive": make_strategy("autoregressive"), "verified": verified}
    asked = [json.loads(line)["prompt"] for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    rows = [render_chat(tokenizer, [{"role": "user", "content": prompt}]) for prompt in asked]

    def answer(row: list[int], name: str) -> tuple[Generation, float]:
        begin = time.perf_counter()
        text = decoder.generate([row], strategies[name], arguments.new_tokens, stop_tokens=tokenizer.stop_ids)
        return text, time.perf_counter() - begin

    seconds, counts = dict.fromkeys(strategies, 0.0), {name: Counts() for name in strategies}
    num_equal = 0
    for name in strategies:
        answer(max(rows, key=len), name)  # the warm-up
    for prompt, row in zip(asked, rows, strict=True):
        texts: dict[str, Generation] = {}
        for name in strategies:
            texts[name], time_s = answer(row, name)
            seconds[name] += time_s
            counts[name] += texts[name].counts
        equal = texts["verified"].tokens == texts["autoregressive"].tokens
        num_equal += equal
        print(f"{paint(prompt, 'bold')}\n\n{coloured(tokenizer, texts['verified'])}\n")
        length = texts["verified"].counts.mean_accepted_length or 1.0
        told = "equal to the autoregressive text" if equal else "DIFFERENT from the autoregressive text"
        print(f"[{len(texts['verified'].tokens[0])} tokens, {told}, {length:.2f} tokens a backbone pass]\n", flush=True)
    speed = {name: counts[name].num_tokens / seconds[name] for name in strategies}
    tau, ratio = counts["verified"].mean_accepted_length, speed["verified"] / speed["autoregressive"]
    for name in strategies:
        print(f"{name:<16}{speed[name]:8.1f} tokens/s")
    print(f"{num_equal} of {len(rows)} texts are equal; verified decoding is {ratio:.2f} times as fast")
    result = {f"tokens_per_s_{name}": speed[name] for name in strategies}
    result |= {"speedup": ratio, "mean_accepted_length": tau, "num_texts": len(rows), "num_equal": num_equal}
    print(json.dumps(result))
    if num_equal < len(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()

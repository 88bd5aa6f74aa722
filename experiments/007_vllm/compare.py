"""A backbone and its module in vLLM: is the text the same with speculation, and are as many drafts accepted as here?

    python compare.py prepare WORK CHECKPOINT [--module FOLDER]   # where recyclegpt is installed
    python compare.py serve WORK                                  # in vLLM's environment (requirements.txt)

`prepare` exports both into WORK and decodes prompts verified, with 1 and 3 drafted tokens, in fp32 and bf16. `serve`
does the same in vLLM, greedily, one request at a time, and without speculation. vLLM's drafter has no draft vocabulary,
so the module drafts over the whole vocabulary here too; rows `draft vocabulary` say what it accepts with its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

NUM_DRAFTED, DTYPES = (1, 3), ("float32", "bfloat16")
FACTS, RESULT = "ours.json", "result.json"
Row = dict[str, Any]


def prepare(work: Path, checkpoint: str, module: str | None, prompts: Path, num_prompts: int, new_tokens: int) -> None:
    import torch

    from recyclegpt.checkpoints.load import load_trained
    from recyclegpt.data.prompts import encode_prompts, read_prompts
    from recyclegpt.decoding import Counts, Decoder, make_strategy

    source = [f"checkpoint={checkpoint}", *([] if module is None else [f"module={module}"]), "dtype=float32"]
    for kind, name in (("llama", "target"), ("vllm", "draft")):
        command = ["export", *source, f"format={kind}", f"output_dir={work / name}", "overwrite=true"]
        subprocess.run([sys.executable, "-m", "recyclegpt", *command], check=True, stdout=subprocess.DEVNULL)
    trained = load_trained(checkpoint, module=module)
    asked = read_prompts(prompts)
    if trained.tokenizer.chat is not None:
        asked = [prompt._replace(messages=[{"role": "user", "content": prompt.text}]) for prompt in asked]
    texts = encode_prompts(trained.tokenizer, asked[:: -(-len(asked) // num_prompts)], "auto")
    assert trained.model.recyclable is not None
    vocabularies = ["whole", *([] if trained.model.draft_ids is None else ["draft"])]
    rows: list[Row] = []
    for vocabulary in reversed(vocabularies):
        if vocabulary == "whole":
            trained.model.recyclable.draft_ids = None
            trained.model.recycle_config = replace(trained.model.recycle_config, draft_vocab=None)
        for dtype in DTYPES:
            decoder = Decoder.optimised(trained.model, getattr(torch, dtype))
            for drafted in NUM_DRAFTED:
                counts, written = Counts(), []
                for text in texts:
                    generation = decoder.generate([text], make_strategy("verified", drafted), new_tokens)
                    written += generation.tokens
                    counts += generation.counts
                at = range(1, drafted + 1)
                rows.append({"dtype": dtype, "num_drafted": drafted, "vocabulary": vocabulary, "texts": written})
                rows[-1] |= {"drafts": counts.verified_at[1], "accepted": [counts.accepted_at[place] for place in at]}
    facts = {"checkpoint": checkpoint, "module": module, "new_tokens": new_tokens, "prompts": texts, "rows": rows}
    (work / FACTS).write_text(json.dumps(facts))


def one(work: Path, dtype: str, num_drafted: int) -> None:
    """One engine, in a process of its own: its texts, and what it counted, as a line of JSON."""
    from vllm import LLM, SamplingParams

    facts = json.loads((work / FACTS).read_text())
    speculative = {"method": "eagle", "model": str(work / "draft"), "num_speculative_tokens": num_drafted}
    engine = LLM(
        model=str(work / "target"), dtype=dtype, max_num_seqs=1, enforce_eager=True, disable_log_stats=False,
        enable_prefix_caching=False, max_model_len=max(map(len, facts["prompts"])) + facts["new_tokens"] + 8,
        speculative_config=speculative if num_drafted else None,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=facts["new_tokens"], ignore_eos=True)
    texts = [
        list(engine.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)[0].outputs[0].token_ids)
        for prompt in facts["prompts"]
    ]
    counted = {metric.name.removeprefix("vllm:spec_decode_"): metric for metric in engine.get_metrics()}
    row: Row = {"dtype": dtype, "num_drafted": num_drafted, "texts": texts}
    if num_drafted:
        row["drafts"] = counted["num_drafts"].value
        row["accepted"] = counted["num_accepted_tokens_per_pos"].values[:num_drafted]
    print("\n" + json.dumps(row), flush=True)


def serve(work: Path) -> None:
    import torch
    import vllm

    facts = json.loads((work / FACTS).read_text())
    ours = {(row["dtype"], row["num_drafted"], row["vocabulary"]): row for row in facts["rows"]}
    table, shape = [], "{:>9} {:>8} {:>13} {:>13}  {:<20} {:<20} {}"
    print("equal: texts that equal vLLM's without speculation, and ours; accepted: share by position")
    heads = ("equal, plain", "equal, ours", "accepted, vLLM", "here", "here, draft vocabulary")
    print(shape.format("dtype", "drafted", *heads))
    for dtype in DTYPES:
        found: dict[int, Row] = {}
        for drafted in (0, *NUM_DRAFTED):
            command = [sys.executable, __file__, "one", str(work), "--dtype", dtype, "--num-drafted", str(drafted)]
            done = subprocess.run(command, check=False, capture_output=True, text=True, env={**DEFAULTS, **os.environ})
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            found[drafted] = json.loads(done.stdout.splitlines()[-1])
        for drafted in NUM_DRAFTED:
            theirs = found[drafted]
            whole, cut = (ours.get((dtype, drafted, vocabulary)) for vocabulary in ("whole", "draft"))
            row = {"dtype": dtype, "num_drafted": drafted, "num_texts": len(theirs["texts"])}
            row["equal_to_plain"] = _equal(theirs, found[0])
            row["equal_to_recyclegpt"] = _equal(theirs, whole)
            for name, counts in (("vllm", theirs), ("recyclegpt", whole), ("recyclegpt_draft_vocabulary", cut)):
                row[f"drafts_{name}"] = counts and counts["drafts"]
                row[f"acceptance_{name}"] = counts and [number / counts["drafts"] for number in counts["accepted"]]
            table.append(row)
            equal = [f"{row[key]} of {row['num_texts']}" for key in ("equal_to_plain", "equal_to_recyclegpt")]
            shares = [_shares(row[key]) for key in row if key.startswith("acceptance")]
            print(shape.format(dtype, drafted, *equal, *shares), flush=True)
    document = {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        **{key: facts[key] for key in ("checkpoint", "module")},
    }
    document |= {"new_tokens": facts["new_tokens"], "rows": table}
    (work / RESULT).write_text(json.dumps(document, indent=2))
    print(json.dumps(document))


DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def _equal(one: Row, other: Row | None) -> int:
    return 0 if other is None else sum(a == b for a, b in zip(one["texts"], other["texts"], strict=True))


def _shares(shares: list[float] | None) -> str:
    return "-" if shares is None else " ".join(f"{share:.3f}" for share in shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("prepare", "serve", "one"))
    parser.add_argument("work", type=Path)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--module")
    parser.add_argument("--prompts", type=Path, default=Path(__file__).parents[1] / "005_smollm2/demo_prompts.jsonl")
    parser.add_argument("--num-prompts", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--num-drafted", type=int, default=1)
    given = parser.parse_args()
    if given.action == "prepare":
        prepare(given.work, given.checkpoint, given.module, given.prompts, given.num_prompts, given.new_tokens)
    elif given.action == "serve":
        serve(given.work)
    else:
        one(given.work, given.dtype, given.num_drafted)


if __name__ == "__main__":
    main()

"""What `decoding.drafter=self_speculative` should skip of a backbone, by its own greedy text on tuning prompts.

python experiments/006_neighbours/search_skip_set.py CHECKPOINT PROMPTS.jsonl [--num-prompts 8] [--new-tokens 48]

Greedy, where Draft & Verify (arXiv 2309.08168) has Bayesian optimisation: every attention and SwiGLU is skipped alone,
and those that cost the fewest accepted tokens for the weights they read are then skipped one after another, as long as
the predicted speedup rises: mean accepted length over 1 + m * c, with c the share of the weights that a draft reads.
"""

from __future__ import annotations

import argparse

import torch

from recyclegpt.benchmark.ceilings import backbone_bytes
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.data.prompts import encode_prompts, read_prompts
from recyclegpt.decoding import Decoder, Verified


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("prompts")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--num-recycled", type=int, default=4)
    given = parser.parse_args()
    trained = load_trained(given.checkpoint)
    model, tokenizer = trained.model, trained.tokenizer
    rows = encode_prompts(tokenizer, read_prompts(given.prompts)[: given.num_prompts], "auto")
    sizes = {}
    for number, layer in enumerate(model.backbone.layers):
        sizes[f"a{number}"] = sum(weight.numel() for weight in layer.self_attn.parameters())
        sizes[f"m{number}"] = sum(weight.numel() for weight in layer.mlp.parameters())
    total = backbone_bytes(model) / model.lm_head.weight.element_size()
    outside = (
        0
        if model.draft_ids is None
        else model.lm_head.weight.numel() * (1 - len(model.draft_ids) / model.config.vocab_size)
    )
    decoder = Decoder.optimised(model, torch.bfloat16)

    def measure(skipped: list[str]) -> tuple[float, float]:
        """Mean accepted length and predicted speedup."""
        strategy = Verified(given.num_recycled, drafter=f"self_speculative:{'.'.join(skipped)}")
        counts = decoder.generate(rows, strategy, given.new_tokens, stop_tokens=tokenizer.stop_ids).counts
        length = counts.mean_accepted_length or 1.0
        draft_cost = (total - outside - sum(sizes[part] for part in skipped)) / total
        return length, length / (1 + given.num_recycled * draft_cost)

    alone = {part: measure([part])[0] for part in sizes}
    order = sorted(sizes, key=lambda part: (1 + given.num_recycled - alone[part]) / sizes[part])
    skipped: list[str] = []
    best = 0.0
    for part in order:
        length, speedup = measure([*skipped, part])
        if speedup > best:
            skipped, best = [*skipped, part], speedup
            print(f"{part} skipped: mean accepted length {length:.2f}, predicted speedup {speedup:.3f}", flush=True)
    print(f"decoding.drafter=self_speculative:{'.'.join(sorted(skipped, key=lambda part: (int(part[1:]), part)))}")


if __name__ == "__main__":
    main()

"""How good: held-out quality, lm-eval benchmarks in three scorings."""

from recyclegpt.evaluation.perplexity import continuation_nll, held_out_metrics, unigram_loss

__all__ = ["continuation_nll", "held_out_metrics", "unigram_loss"]

"""How good: held-out quality, benchmarks of lm-eval in three scorings."""

from recyclegpt.evaluation.perplexity import continuation_nll, held_out_metrics, unigram_loss

__all__ = ["continuation_nll", "held_out_metrics", "unigram_loss"]

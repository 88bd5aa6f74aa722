"""Language models that decode faster by recycling states they have already computed (RecycleGPT, arXiv 2308.03421)."""

__version__ = "0.1.0"

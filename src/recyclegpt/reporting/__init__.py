"""What came out, as figures and reports. Reads files and plain values only; imports nothing else of the package."""

from recyclegpt.reporting.figures import training_curve
from recyclegpt.reporting.report import write_report
from recyclegpt.reporting.run_folders import read_runs
from recyclegpt.reporting.settings import pareto_front, summarise, swept_keys

__all__ = ["pareto_front", "read_runs", "summarise", "swept_keys", "training_curve", "write_report"]

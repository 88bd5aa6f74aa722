"""What came out, as figures and reports. Reads files and plain values only; imports nothing else of the package."""

from recyclegpt.reporting.figures import training_curve
from recyclegpt.reporting.report import write_report
from recyclegpt.reporting.run_folders import Run, read_runs
from recyclegpt.reporting.settings import Setting, pareto_front, summarise, swept_keys

__all__ = ["Run", "Setting", "pareto_front", "read_runs", "summarise", "swept_keys", "training_curve", "write_report"]

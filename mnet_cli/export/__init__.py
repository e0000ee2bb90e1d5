"""Export: files for other runtimes, handed over only when their answers are proven."""

from mnet_cli.export.pipeline import Exported, Plan, check_plan, export
from mnet_cli.formats.registry import FORMATS

__all__ = ["FORMATS", "Exported", "Plan", "check_plan", "export"]

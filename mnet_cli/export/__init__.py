"""Export: files for other runtimes, handed over only when their answers are proven."""

from mnet_cli.export.formats import FORMATS
from mnet_cli.export.run import Exported, Plan, check_plan, export

__all__ = ["FORMATS", "Exported", "Plan", "check_plan", "export"]

"""Training: from a recipe to a run directory with the best checkpoint."""

from mnet_cli.train.loop import fit
from mnet_cli.train.setup import Job, prepare_data, prepare_job, resume_job
from mnet_cli.train.state import Fit
from mnet_cli.train.summary import summarize, write_results
from mnet_cli.train.supply import CacheUse, Supply

__all__ = [
    "CacheUse",
    "Fit",
    "Job",
    "Supply",
    "fit",
    "prepare_data",
    "prepare_job",
    "resume_job",
    "summarize",
    "write_results",
]

"""distft: fine-tune transformers on SLURM clusters, and never lose a run."""

__version__ = "0.1.0"

"""The SLURM launcher: submits jobs, runs on their nodes, and decides about requeue."""

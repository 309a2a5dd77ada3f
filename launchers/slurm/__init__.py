"""SLURM: sends runs to it through submitit, is their light parent on its nodes, and asks it what became of them."""

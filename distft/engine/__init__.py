"""The training engine: DeepSpeed, optimizers and learning-rate schedules."""

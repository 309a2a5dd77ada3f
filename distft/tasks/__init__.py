"""Training tasks, one file per task. The rest of the program does not know which task runs."""

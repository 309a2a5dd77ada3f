"""Tasks: what a batch means. One file a task; nothing else knows which task runs."""

"""Running a task: its command line, recipes, callbacks, checkpoints and logs."""

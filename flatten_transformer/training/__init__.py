"""Run a task: command line, recipes, callbacks, checkpoints and logs."""

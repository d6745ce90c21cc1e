"""The command line: one file a command, loaded when that command is asked for. Nothing here imports jax before a command runs."""

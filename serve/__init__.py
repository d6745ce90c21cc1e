"""The HTTP server: a front process (this package, without jax) and an engine process (`engine_process`), joined by a socket."""

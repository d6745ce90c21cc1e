"""The engine on the host: the loop over steps, what each step did, and the outputs of requests. Imports no jax."""

"""What runs in each step, decided on the host: requests, KV pages, prefix cache, policies, scheduler. Never imports jax."""

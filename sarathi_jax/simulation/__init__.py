"""What a step takes on hardware that need not be there: devices and links as data, and the cost model. Host code: never imports jax."""

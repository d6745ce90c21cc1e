"""Runs a step on the device: packing, the step program, sampling, and the executor that compiles and calls them."""

"""Attention and KV kernels: several implementations of each operation under one signature, and the registry that picks one.

A kernel knows arrays; it knows nothing of models, requests or meshes.
"""

"""Text in, text out, on the host: tokenizer, incremental detokenizer, stop strings, chat template. Knows nothing of
jax."""

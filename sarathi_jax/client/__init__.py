"""The other end of an OpenAI-compatible server: requests over HTTP, streams of tokens, loads and what they measure. Host code; knows nothing of engines."""

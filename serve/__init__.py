"""Where the HTTP server will stand (OpenAI-compatible API, page, engine process). Nothing here serves yet: use `LLM` or the command line."""

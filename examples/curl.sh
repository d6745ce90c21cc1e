#!/bin/sh
# What the server answers, by curl alone:  sarathi-jax serve demo &  sh examples/curl.sh
set -eu
url=${SARATHI_JAX_URL:-http://127.0.0.1:8000}
post() { curl -sS --fail-with-body -H 'Content-Type: application/json' -d "$2" "$url$1"; echo; }

post /v1/completions '{"model": "demo", "prompt": ["12+30=", "20+7="], "max_tokens": 4, "temperature": 0}'
post /v1/completions '{"model": "demo", "prompt": "12+30=", "max_tokens": 0, "echo": true, "logprobs": 1}'
post /v1/chat/completions '{"model": "demo", "messages": [{"role": "user", "content": "What is 12+30?"}], "stream": true}'
post /tokenize '{"prompt": "12+30=", "return_token_strs": true}'
curl -sS "$url/server_info"
echo

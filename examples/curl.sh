#!/usr/bin/env bash
# KAITO's call, a conversation, a stream and OpenAI's call, with curl.
set -euo pipefail
URL=${PHI3_SERVE_URL:-http://127.0.0.1:8000}
MODEL=${PHI3_SERVE_MODEL:-phi-3-tiny}

post() { # PATH BODY
  curl --silent --show-error --fail-with-body --no-buffer "$URL$1" \
    -H "Content-Type: application/json" -H "Authorization: Bearer ${PHI3_SERVE_API_KEY:-none}" -d "$2"
  echo
}

echo "# KAITO's call: a prompt in Phi-3's own format"
post "/$MODEL/chat" '{"prompt": "<|user|>\nWhat is a castle?<|end|>\n<|assistant|>", "return_full_text": false}'

echo "# a conversation: the server applies the chat template"
post "/$MODEL/chat" '{"messages": [{"role": "user", "content": "347 + 285"}], "generate_kwargs": {"do_sample": false, "max_new_tokens": 80}}'

echo "# the same as server-sent events"
post "/$MODEL/chat" '{"messages": [{"role": "user", "content": "Count to ten"}], "stream": true}'

echo "# OpenAI's call"
post /v1/chat/completions '{"model": "'"$MODEL"'", "messages": [{"role": "user", "content": "Name three fruits"}], "max_tokens": 40}'

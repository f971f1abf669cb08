"""A batch through OpenAI's SDK. The server needs `batches.directory` in its config; see docs/batches.md."""

import json
import os
import time
from pathlib import Path

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("PHI3_SERVE_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("PHI3_SERVE_API_KEY", "none"),
)

questions = Path(__file__).with_name("questions.jsonl")
file = client.files.create(file=questions, purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status in ("validating", "in_progress", "finalizing"):
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)

print(batch.status, batch.request_counts)
for file_id in (batch.output_file_id, batch.error_file_id):
    if file_id is not None:
        for line in client.files.content(file_id).text.splitlines():
            answer = json.loads(line)
            body = answer["response"]["body"]
            print(answer["custom_id"], body["choices"][0]["message"]["content"] if "choices" in body else body["error"])

"""guidellm: its load generator with four requests at a time, chats that stream, every one of which has to be answered in full."""

import json
import subprocess
import sys
from pathlib import Path

URL, MODEL, TOKENIZER, WORK = sys.argv[1:]
NUM_REQUESTS, OUTPUT_TOKENS = 16, 16


def main() -> None:
    report = Path(WORK) / "report.json"
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-progress"]
    command += ["--backend", f"kind=openai_http,target={URL},model={MODEL}", "--profile", "kind=concurrent,streams=4"]
    command += ["--constraint", f"kind=max_requests,count={NUM_REQUESTS}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={OUTPUT_TOKENS}"]
    command += ["--output", f"kind=json,path={report}"]
    subprocess.run(command, cwd=WORK, check=True)
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert not requests["errored"], requests["errored"][0]
    assert len(requests["successful"]) == NUM_REQUESTS, len(requests["successful"])
    counts = [request["output_metrics"]["text_tokens"] for request in requests["successful"]]
    assert counts == [OUTPUT_TOKENS] * NUM_REQUESTS, counts
    print(f"{NUM_REQUESTS} streamed requests, {OUTPUT_TOKENS} tokens each, none failed")


main()

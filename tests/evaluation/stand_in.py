"""A stand-in for MT-Bench's judge, and questions in FastChat's layout."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Reply = tuple[int, str]  # HTTP status, and what the judge says


class StandIn:
    """An OpenAI-compatible server on this machine; `behave` says what request k answers."""

    def __init__(self) -> None:
        self.behave: Callable[[int, dict[str, Any]], Reply] = lambda k, body: (200, "[[7]]")
        self.requests: list[dict[str, Any]] = []
        stand_in, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    stand_in.requests.append(body)
                    status, said = stand_in.behave(len(stand_in.requests), body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(stand_in.body(status, said).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def body(self, status: int, said: str) -> str:
        if status != 200:
            return json.dumps({"error": {"message": said}})
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "stand-in"}
        return json.dumps({**head, "choices": [choice]})


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_material(folder: Path) -> Path:
    """Write three questions in FastChat's layout, one of them with references."""
    data = folder / "llm_judge" / "data"
    rows = [(1, "writing", "a poem"), (2, "math", "1 + 1"), (3, "stem", "a star")]
    write_lines(
        data / "mt_bench" / "question.jsonl",
        [{"question_id": i, "category": c, "turns": [q, f"{q}, again"]} for i, c, q in rows],
    )
    write_lines(
        data / "mt_bench" / "reference_answer" / "gpt-4.jsonl",
        [{"question_id": 2, "choices": [{"turns": ["two", "two again"]}]}],
    )
    turns = {"": "{question}|{answer}", "-multi-turn": "{question_2}|{answer_1}|{answer_2}"}
    references = {"single-v1": "", "single-math-v1": "|{ref_answer_1}"}
    write_lines(
        data / "judge_prompts.jsonl",
        [
            {
                "name": kind + turn,
                "type": "single",
                "system_prompt": "Judge.",
                "prompt_template": text + reference,
            }
            for kind, reference in references.items()
            for turn, text in turns.items()
        ]
        + [{"name": "pair-v2", "type": "pairwise", "system_prompt": "", "prompt_template": ""}],
    )
    return data / "mt_bench" / "question.jsonl"

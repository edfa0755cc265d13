"""Every record has one form, whoever writes it. In a process of its own, since logging is the process's."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging
import structlog
from asgi_correlation_id import correlation_id
from service import logs

logging.getLogger("vllm").addHandler(logging.StreamHandler())
logging.getLogger("vllm").propagate = False
logs.configure({form!r}, {level!r})
correlation_id.set("abc123")
structlog.get_logger("service.registry").info("published", adapter="pirate")
logging.getLogger("vllm.core").warning("cache %s", "small", extra={{"color_message": "small"}})
logging.getLogger("uvicorn.error").info("started")
logging.getLogger("uvicorn.access").info("GET /")
structlog.get_logger("service").debug("detail")
def divide(prompt):
    return len(prompt) / 0

try:
    divide("a client's secret".upper())
except ZeroDivisionError:
    structlog.get_logger("service").exception("broke")
"""


def run(form: str, level: str = "info") -> list[str]:
    script = SCRIPT.format(form=form, level=level)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not done.stdout
    return done.stderr.splitlines()


def test_json_has_one_object_a_line_for_ours_and_for_everybody_elses():
    records = [json.loads(line) for line in run("json")]
    assert [(record["logger"], record["event"]) for record in records] == [
        ("service.registry", "published"),
        ("vllm.core", "cache small"),
        ("uvicorn.error", "started"),
        ("service", "broke"),
    ]
    assert records[0]["adapter"] == "pirate"
    assert {record["level"] for record in records} == {"info", "warning", "error"}
    assert "color_message" not in records[1]
    assert all(record["request_id"] == "abc123" for record in records)
    assert records[3]["exception"][0]["exc_type"] == "ZeroDivisionError"


def test_auto_is_json_where_no_terminal_is():
    assert json.loads(run("auto")[0])["event"] == "published"


def test_a_traceback_tells_nothing_of_what_clients_sent():
    for form in ("json", "console"):
        text = "\n".join(run(form))
        assert "ZeroDivisionError" in text
        assert "A CLIENT'S SECRET" not in text


def test_console_is_for_people():
    first, *_ = run("console")
    assert "published" in first
    assert not first.startswith("{")


def test_the_level_is_the_least_that_is_written():
    assert [json.loads(line)["event"] for line in run("json", "error")] == ["broke"]
    assert "detail" in [json.loads(line)["event"] for line in run("json", "debug")]

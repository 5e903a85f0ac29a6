"""A training that was killed goes on: the host's own checkpoints, through the public command."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Training, kill_marked, write_prompts
from prefect.logging import disable_run_logger

from flows.process import run_logged, running
from flows.stage import alone_in, code_version, skip, working_on
from vpo_plugin.advantages import RewardBatch, group_z_norm
from vpo_plugin.files import model_digest
from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf import checkpoints
from vpo_plugin.openrlhf.checkpoints import remove_checkpoints, rewind, why_not_saved
from vpo_plugin.openrlhf.log import check_owner, forget_steps_after, log_rollouts, log_step, own, read_steps
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.files import spec_digest


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    """A training of four steps that takes a checkpoint after each."""
    run = Training(tmp_path / "policy", write_prompts(tmp_path / "prompts", 16), resolve_policy(TINY, tmp_path))
    yield run
    kill_marked(run.mark)


def checkpointing(folder: Path) -> list[str]:
    return ["--ckpt.path", str(folder), "--ckpt.save_steps", "1", "--ckpt.load_enable", "--vpo.seed", "5"]


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 500
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists(), process.communicate(timeout=60)[0][-3000:]


def damage(file: Path) -> None:
    """Change some bytes in the middle, as a failing disk does."""
    with file.open("r+b") as open_file:
        open_file.seek(file.stat().st_size // 2)
        open_file.write(b"\xff" * 64)


def rollouts(training: Training, step: int) -> dict[str, np.ndarray]:
    with np.load(training.output / "vpo" / "rollouts" / f"step_{step:06d}.npz") as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_killed_training_goes_on(training: Training, tmp_path: Path) -> None:
    """Killed after step 3, whose checkpoint is damaged: goes on after step 2 with the same prompts and weightings."""
    checkpoints = tmp_path / "checkpoints"
    process = training.start(*checkpointing(checkpoints))
    wait_for(checkpoints / "_actor" / "global_step3" / "metric.json", process)
    kill_marked(training.mark)
    process.communicate(timeout=60)
    before = {step: rollouts(training, step) for step in (1, 2, 3)}
    damage(checkpoints / "_actor" / "global_step3" / "mp_rank_00_model_states.pt")

    code, output = training.run(*checkpointing(checkpoints))
    assert code == 0, output[-3000:]
    assert "vpo: The checkpoint global_step3" in output
    assert "vpo: Resuming after step 2" in output

    assert [step["step"] for step in read_steps(training.output / "vpo")] == [1, 2, 3, 4]
    after = {step: rollouts(training, step) for step in (1, 2, 3, 4)}
    for step in (1, 2):
        np.testing.assert_array_equal(after[step]["advantages"], before[step]["advantages"])
    # In a batch the host has the prompts in the order in which their rollouts were done.
    assert sorted(after[3]["prompts"]) == sorted(before[3]["prompts"])
    assert len({prompt for step in after.values() for prompt in step["prompts"]}) == 16
    for step in (3, 4):
        generator = torch.Generator().manual_seed(5 * 2**20 + step - 1)
        matrices = torch.from_numpy(after[step]["reward_matrices"])
        expected = group_z_norm(RewardBatch(matrices, generator=generator).set_rewards).numpy()
        np.testing.assert_allclose(after[step]["advantages"], expected, atol=1e-6)
    assert (training.output / "model.safetensors").exists()
    assert training.processes_left() == []


@pytest.mark.slow
def test_full_disk_leaves_the_last_checkpoint(training: Training, tmp_path: Path) -> None:
    """The disk has room for one checkpoint and a part of the next."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    weights = (Path(training.policy) / "model.safetensors").stat().st_size
    size = (
        weights * 7 * 3 // 2
    )  # with the optimizer's three float32 a parameter, a checkpoint is seven times the weights
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(checkpoints)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    try:
        code, output = training.run(*checkpointing(checkpoints))
        assert code == 1
        last = output.strip().splitlines()[-1]
        assert f"The checkpoint global_step2 could not be written to {checkpoints}/_actor, where " in last
        assert "start again with --ckpt.load_enable" in last
        step, passed_over = rewind(checkpoints)
        assert step == 1
        assert passed_over == [
            f"The checkpoint global_step2 in {checkpoints} cannot be used: it was not finished. It is kept as "
            "unusable_actor_global_step2."
        ], "the last one before it is whole"
    finally:
        kill_marked(training.mark)
        subprocess.run(["umount", str(checkpoints)], check=True)


def test_errors_while_saving(tmp_path: Path) -> None:
    """Only a disk that is full is told to make room; memory that is short is no matter of the disk."""

    def error_of(action: Any) -> Any:
        with pytest.raises((OSError, RuntimeError)) as raised:
            action()
        return raised.value

    full = error_of(lambda: torch.save(torch.randn(100_000), "/dev/full"))
    assert "make room" in str(why_not_saved(full, "global_step2", str(tmp_path)))
    assert "make room" in str(why_not_saved(OSError(errno.ENOSPC, "No space left"), "global_step2", str(tmp_path)))
    missing = why_not_saved(error_of((tmp_path / "none" / "file").touch), "global_step2", str(tmp_path))
    assert "make the folder writable" in str(missing)
    assert why_not_saved(error_of(lambda: torch.empty(10**15)), "global_step2", str(tmp_path)) is None


def write_checkpoint(model: Path, step: int) -> Path:
    """The files of a checkpoint as the host and DeepSpeed write them, with small tensors."""
    folder = model / f"global_step{step}"
    folder.mkdir(parents=True)
    torch.save({"module": {"weight": torch.randn(1000)}}, folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer": torch.randn(1000)}, folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder / "metric.json").write_text('{"metric_key": null, "metric_value": null}')
    (model / "latest").write_text(folder.name)
    return folder


def test_newest_whole_checkpoint(tmp_path: Path) -> None:
    """Whatever is wrong with the newer ones, of the actor or of the critic, both go on from the same step."""
    actor, critic = tmp_path / "_actor", tmp_path / "_critic"
    for step in range(2, 14, 2):
        for model in (actor, critic) if step < 12 else (actor,):
            write_checkpoint(model, step)
    for model in (actor, critic):
        (model / "latest").write_text("global_step6")
    truncated = critic / "global_step4" / "mp_rank_00_model_states.pt"
    truncated.write_bytes(truncated.read_bytes()[:500])
    damage(actor / "global_step6" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (critic / "global_step8" / "metric.json").write_text("")  # the disk was full
    (actor / "global_step10" / "metric.json").unlink()

    before = [read_checkpoint(folder) for folder in sorted(tmp_path.glob("*/global_step*"))]
    step, passed_over = rewind(tmp_path)
    assert step == 2
    assert [sentence.split("global_step")[1][:2].strip() for sentence in passed_over] == ["12", "10", "8", "6", "4"]
    assert ["not finished" in sentence for sentence in passed_over] == [True, True, True, False, False]
    assert (actor / "latest").read_text() == (critic / "latest").read_text() == "global_step2"
    kept = [path for path in tmp_path.iterdir() if path.name.startswith("unusable_")]
    assert {path.name for path in kept} >= {f"unusable_actor_global_step{step}" for step in (4, 6, 8, 10, 12)}
    after = [read_checkpoint(folder) for folder in [*kept, *tmp_path.glob("*/global_step*")]]
    assert sorted(after) == sorted(before), "nothing was removed"
    assert rewind(tmp_path) == (2, [])


def read_checkpoint(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((file.name, file.read_bytes()) for file in folder.iterdir())


def test_checkpoints_of_an_older_host(tmp_path: Path) -> None:
    """Which wrote no metric.json, and one that was killed before it: what `latest` names was finished."""
    actor = tmp_path / "_actor"
    for step in (2, 4):
        (write_checkpoint(actor, step) / "metric.json").unlink()
    assert rewind(tmp_path) == (4, [])
    damage(actor / "global_step4" / "mp_rank_00_model_states.pt")
    step, passed_over = rewind(tmp_path)
    assert step == 2
    assert "kept as unusable_actor_global_step4." in passed_over[0]
    write_checkpoint(actor, 4)
    damage(actor / "global_step4" / "mp_rank_00_model_states.pt")
    assert "kept as unusable_actor_global_step4_2." in rewind(tmp_path)[1][0], "an earlier one keeps its place"


def test_checkpoint_that_is_too_large_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated files are found all the same, and it is said that checksums were left out."""
    monkeypatch.setattr(checkpoints, "READ_THROUGH", 1000)
    for step in (2, 4):
        write_checkpoint(tmp_path / "_actor", step)
    truncated = tmp_path / "_actor" / "global_step4" / "mp_rank_00_model_states.pt"
    truncated.write_bytes(truncated.read_bytes()[:500])
    damage(tmp_path / "_actor" / "global_step2" / "mp_rank_00_model_states.pt")
    step, said = rewind(tmp_path)
    assert step == 2
    assert "is damaged" in said[0]
    assert "its files exist, but their checksums were not compared" in said[1]


def test_no_whole_checkpoint(tmp_path: Path) -> None:
    assert rewind(tmp_path / "none") == (0, [])
    (write_checkpoint(tmp_path / "_actor", 3) / "metric.json").unlink()
    (tmp_path / "_actor" / "latest").unlink()
    step, passed_over = rewind(tmp_path)
    assert step == 0
    assert len(passed_over) == 1


def test_finished_run_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "_actor", 3)
    write_checkpoint(tmp_path / "_actor", 4).rename(tmp_path / "_actor" / "best_global_step4")
    (tmp_path / "global_step3_hf").mkdir()
    remove_checkpoints(tmp_path)
    left = sorted(path.name for path in [*tmp_path.iterdir(), *(tmp_path / "_actor").iterdir()])
    assert left == ["_actor", "best_global_step4", "global_step3_hf", "latest"]


def test_log_goes_back_to_the_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        log_step(tmp_path, step, {"reward": step / 10})
        log_rollouts(tmp_path, step, advantages=np.zeros(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # killed while writing
    forget_steps_after(tmp_path, 2)
    log_step(tmp_path, 3, {"reward": 0.5})
    assert [(step["step"], step["reward"]) for step in read_steps(tmp_path)] == [(1, 0.1), (2, 0.2), (3, 0.5)]
    assert len(list((tmp_path / "rollouts").iterdir())) == 2
    forget_steps_after(tmp_path, 0)
    assert read_steps(tmp_path) == []


def test_later_start_takes_the_folder_over(tmp_path: Path) -> None:
    """What is left of a training whose Ray was lost does not write into what goes on from its checkpoint."""
    own(tmp_path / "vpo", "first")
    check_owner(tmp_path / "vpo", "first")
    own(tmp_path / "vpo", "second")
    check_owner(tmp_path / "vpo", "second")
    with pytest.raises(RuntimeError, match=r"Another training has been started in .*; this one stops"):
        check_owner(tmp_path / "vpo", "first")


PROGRAM = """
import sys, time
from pathlib import Path
folder, code = Path(sys.argv[1]), int(sys.argv[2])
with (folder / "starts").open("a") as file:
    file.write("started\\n")
while not (folder / "go").exists():
    time.sleep(0.05)
sys.exit(code)
"""

FLOW_THAT_DIES = """
import sys
from pathlib import Path
from flows.process import run_logged
folder = Path(sys.argv[1])
run_logged(sys.argv[2:], folder / "stage" / "log", what="The program", on_poll=(folder / "watching").touch)
"""


@pytest.mark.parametrize("ends", ["watched", "unseen"])
@pytest.mark.parametrize("code", [0, 3])
def test_killed_flow_finds_its_program_again(tmp_path: Path, ends: str, code: int) -> None:
    """Whether it still runs or has ended meanwhile; one that failed unseen is started again."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(code)]
    flow = [sys.executable, "-c", FLOW_THAT_DIES, str(tmp_path), *command]
    starts, log = tmp_path / "starts", tmp_path / "stage" / "log"
    with pytest.raises(KeyboardInterrupt), working_on(log.parent, {"a": 1}):
        raise KeyboardInterrupt
    with subprocess.Popen(flow) as process:
        wait_for(starts, process)
        process.kill()
    with working_on(log.parent, {"a": 1}, resume=True):
        assert running(log) is not None
    with pytest.raises(RuntimeError, match="is in use: an earlier run"), working_on(log.parent, {"a": 2}):
        pass
    with pytest.raises(RuntimeError, match="cannot start: an earlier run"):
        run_logged([sys.executable, "-c", "0"], log, what="Another")

    (tmp_path / "watching").unlink(missing_ok=True)
    if ends == "unseen":
        (tmp_path / "go").touch()
        deadline = time.monotonic() + 60
        while running(log) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with subprocess.Popen(flow, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "watching", process)
        (tmp_path / "go").touch()
        error = process.communicate(timeout=60)[1]
    if code == 0:
        assert process.returncode == 0, error
    else:
        assert "The program failed (exit code 3)" in error
    again = ends == "unseen" and code != 0
    assert starts.read_text() == "started\n" * (2 if again else 1)
    assert running(log) is None


@pytest.mark.parametrize("ending", ["a flow watches", "unseen"])
def test_program_without_its_leader_is_followed(tmp_path: Path, ending: str) -> None:
    """The leading shell alone is killed: the folder stays the program's own, and no second one starts beside it."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "0"]
    flow = [sys.executable, "-c", FLOW_THAT_DIES, str(tmp_path), *command]
    starts, log = tmp_path / "starts", tmp_path / "stage" / "log"
    log.parent.mkdir()
    with subprocess.Popen(flow) as process:
        wait_for(starts, process)
        process.kill()
    leader = running(log)
    assert leader is not None
    os.kill(leader, signal.SIGKILL)
    assert running(log) == leader
    with pytest.raises(RuntimeError, match=f"cannot start: an earlier run .*kill -TERM -- -{leader}"):
        run_logged([sys.executable, "-c", "0"], log, what="Another")
    (tmp_path / "watching").unlink(missing_ok=True)
    if ending == "unseen":
        (tmp_path / "go").touch()
    with subprocess.Popen(flow, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "watching", process)
        if ending == "a flow watches":
            assert starts.read_text() == "started\n"
        (tmp_path / "go").touch()
        assert process.wait(60) == 0, process.communicate()[1]
    assert starts.read_text() == "started\n" * 2, "nobody kept its exit code: once more, when it had ended"
    assert running(log) is None


def test_runs_of_one_folder_take_turns(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with disable_run_logger(), alone_in(tmp_path / "run"):
            order.append("second")

    with disable_run_logger(), alone_in(tmp_path / "run"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.5)
        order.append("first")
    waiting.join(60)
    assert order == ["first", "second"]


def test_temporary_home_goes_with_its_process() -> None:
    """By SIGTERM as well; what a killed one left is removed by the next, or by one that ends later."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    program = (
        "import sys; from pathlib import Path; from vpo_plugin.locks import temporary_home\n"
        "Path(temporary_home(), 'socket').touch(); print('ready', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "TMPDIR": str(place)}
    (place / "vpo-mine").mkdir()
    for signum, left in ((signal.SIGKILL, 1), (signal.SIGTERM, 0)):
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
        with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            process.send_signal(signum)
        assert len(list(place.glob("vpo-*/socket"))) == left
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as first:
        assert first.stdout is not None and first.stdout.readline() == b"ready\n"
        with subprocess.Popen([sys.executable, "-c", program], **pipes) as second:
            assert second.stdout is not None and second.stdout.readline() == b"ready\n"
            first.kill()
            first.wait()
            assert len(list(place.glob("vpo-*/socket"))) == 2
            second.communicate()
    assert [path.name for path in place.iterdir()] == ["vpo-mine"], "a folder without a lock is somebody else's"
    shutil.rmtree(place)


def test_finished_results_come_back_with_their_inputs(tmp_path: Path) -> None:
    folder, done = tmp_path / "stage", []
    for inputs in ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}, {"a": 2}):
        with disable_run_logger():
            skipped = skip(folder, inputs)
        if not skipped:
            with working_on(folder, inputs):
                (folder / "result").write_text(str(inputs))
            done.append(inputs)
        assert (folder / "result").read_text() == str(inputs)
    assert done == [{"a": 1}, {"a": 2}]
    assert len(list(tmp_path.iterdir())) == 2


def test_stage_is_cached_by_what_it_reads(tmp_path: Path) -> None:
    """The specification with the Python that it names, the policy's files, the plugin's modules."""
    scorer = tmp_path / "my_scorer_of_cache.py"
    scorer.write_text(
        "def score(candidate, label):\n    return [0.0]\n\ndef rows(split, num_rows, seed):\n    return []\n"
    )
    (tmp_path / "spec.yaml").write_text(
        "name: cached\ndescription: x\nobjectives: [{key: a, description: a}]\nweights: {a: 1.0}\ncandidates: 1\n"
        'tag: route\nprompt: {single: "Write <route_1>.", multi: "Write {candidates} in <route_1>."}\n'
        'scorer: "my_scorer_of_cache:score"\ndataset: {loader: "my_scorer_of_cache:rows"}\n'
        "limits: {response_chars: 1000, tokens_per_candidate: 20}\n"
    )
    before = spec_digest(load_spec(tmp_path))
    assert spec_digest(load_spec(tmp_path)) == before
    scorer.write_text(scorer.read_text().replace("0.0", "1.0"))
    assert spec_digest(load_spec(tmp_path)) != before

    policy = model_digest(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert model_digest(str(tmp_path)) != policy
    assert model_digest("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    assert len({code_version("advantages"), code_version("rewards"), code_version("search/pool.py")}) == 3

"""`python -m benchmarks.simulate`: measure the plugin's overhead in a large run, with synthetic rollouts.

`step` measures a step's rollouts in the plugin, at growing sizes: scoring, the reward matrices through Ray's object
store, the hook in the trainer, and the estimator by itself. `hook` compares the hook on the CPU and on CUDA tensors.
`engine` measures whether scoring slows generation, with a real vLLM engine in the host's actor. docs/scaling.md shows
what `step` and `engine` print.
"""

import argparse
import asyncio
import ctypes
import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vpo_plugin.advantages import RewardBatch, default_num_weights
from vpo_plugin.openrlhf import cpu, matrices
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.openrlhf.worker import SETUP
from vpo_plugin.rewards.response import score_response

ENGINES = 64
ROLLOUTS_PER_PROMPT = 8
CANDIDATES, OBJECTIVES = 5, 16
SIZES = (1024, 2048, 4096, 8192)
"""Rollouts per step; the last size is 16 prompts for each of 64 engines."""
PROMPT_TOKENS, RESPONSE_TOKENS = 128, 384
NO_LABEL = "null"
REPEATS = 5

SPEC = """
name: synthetic
description: Rewards that are read from the candidate, to measure everything but the scorer.
objectives: [{objectives}]
weights: {{{weights}}}
candidates: {candidates}
tag: answer
prompt: {{single: "Write <answer_1>.", multi: "Write {{candidates}} in <answer_1>."}}
scorer: synthetic_scorer:score
dataset: {{loader: "synthetic_scorer:rows"}}
limits: {{response_chars: 100000, tokens_per_candidate: 8{limits}}}
label: json
"""
SCORER = """
import time

def score(candidate, label):
    {cost}
    return [int(digit) / 9 for digit in candidate[:{objectives}].ljust({objectives}, "0")]

def rows(split, num_rows, seed):
    return []
"""
COSTS = {
    "none": "pass",
    "waits": "time.sleep({seconds})",
    "computes": "end = time.thread_time() + {seconds}\n    while time.thread_time() < end: pass",
}
"""The scorer's time per candidate: none, waiting as for a judge's answer, or CPU time with Python's lock held."""


def write_spec(folder: Path, candidates: int, objectives: int, cost: str = "none", seconds: float = 0.0) -> Path:
    """Write a specification of this shape, whose scorer takes this time per candidate; return its folder."""
    keys = [f"r{i:02}" for i in range(objectives)]
    listed = ", ".join(f"{{key: {key}, description: digit}}" for key in keys)
    weights = ", ".join(f"{key}: {1 / objectives}" for key in keys)
    limits = ", concurrent: 32" if cost == "waits" else ""
    (folder / "spec.yaml").write_text(
        SPEC.format(objectives=listed, weights=weights, candidates=candidates, limits=limits)
    )
    scorer = SCORER.format(cost=COSTS[cost].format(seconds=seconds), objectives=objectives)
    (folder / "synthetic_scorer.py").write_text(scorer)
    return folder


def synthetic_text(generator: random.Random) -> str:
    """A response whose candidates spell their own rewards."""
    digits = ("".join(generator.choices("0123456789", k=OBJECTIVES)) for _ in range(CANDIDATES))
    return "Let me think.\n" + "\n".join(f"<answer_{i}>{text}</answer_{i}>" for i, text in enumerate(digits, 1))


def synthetic_response(matrix: np.ndarray | None, reward: float) -> dict[str, Any]:
    """A rollout as the host's agent executor returns it, with or without its reward matrix."""
    extra = {} if matrix is None else {matrices.INFO_KEY: matrices.pack(matrix)}
    return {
        "prompt": "x" * 4 * PROMPT_TOKENS,
        "label": NO_LABEL,
        "observation_tokens": [50_000] * (PROMPT_TOKENS + RESPONSE_TOKENS),
        "action_ranges": [(PROMPT_TOKENS, PROMPT_TOKENS + RESPONSE_TOKENS)],
        "rollout_log_probs": None,
        "reward": reward,
        "scores": reward,
        "truncated": False,
        "extra_logs": {**extra, "candidates_parsed": 5.0, "candidates_unique": 5.0, "scorer_errors": 0.0},
    }


def simulate_step(args: argparse.Namespace) -> None:
    """Measure each part at each size and print a table."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not cpu.cuda_available():
        cpu.install()
    import ray

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="vpo-simulate-") as name:
        folder = Path(name)
        spec_folder = write_spec(folder, CANDIDATES, OBJECTIVES)
        run = Settings(str(spec_folder), CANDIDATES, "raise", folder / "log", on_cpu=True)
        os.environ[VARIABLE] = run.dump()
        cpu.start_private_ray({})
        try:
            measure_step(ROLLOUTS_PER_PROMPT, spec_folder, ray)  # imports and warms up
            rows = [measure_step(size, spec_folder, ray) for size in args.rollouts]
        finally:
            cpu.stop_private_ray()
    print(f"groups of {ROLLOUTS_PER_PROMPT}, m {CANDIDATES}, k {OBJECTIVES}, ", end="")
    print(f"{default_num_weights(OBJECTIVES)} weightings; {args.threads} threads of {os.cpu_count()} cores\n")
    titles = list(rows[0])
    print("  ".join(["rollouts per step".ljust(44), *(f"{row[titles[0]]:>10,.0f}" for row in rows)]))
    for title in titles[1:]:
        print("  ".join([title.ljust(44), *(f"{row[title]:>10,.3g}" for row in rows)]))


def measure_step(rollouts: int, spec_folder: Path, ray: Any) -> dict[str, float]:
    """Seconds and bytes of one step with this number of rollouts."""
    from vpo_plugin.rewards import load_spec

    spec = load_spec(str(spec_folder))
    generator = random.Random(rollouts)
    texts = [synthetic_text(generator) for _ in range(rollouts)]

    started = time.process_time()
    scored = [score_response(spec, text, NO_LABEL, CANDIDATES) for text in texts]
    scoring = time.process_time() - started

    with_matrices = [synthetic_response(one.matrix, one.reward) for one in scored]
    fetch, size = through_ray(with_matrices, ray)
    _, size_without = through_ray([synthetic_response(None, one.reward) for one in scored], ray)

    hook, host = in_the_trainer(with_matrices)

    stacked = torch.from_numpy(np.stack([one.matrix for one in scored]))
    grouped = stacked.view(-1, ROLLOUTS_PER_PROMPT, CANDIDATES, OBJECTIVES)
    estimator, estimator_cpu, memory = time_and_memory(lambda: RewardBatch(grouped).set_rewards)
    return {
        "rollouts": rollouts,
        "parsing and scoring, s of one core": scoring,
        "  responses per second and core": rollouts / scoring,
        "object store, MB": size / 1e6,
        "  reward matrices in it, MB": (size - size_without) / 1e6,
        f"  matrices of one of {ENGINES} engines, kB": (size - size_without) / ENGINES / 1e3,
        "  fetching all, s": fetch,
        "hook in the trainer, s": hook,
        "  the host's own advantages, s": host,
        "estimator alone, s": estimator,
        "  CPU time of its threads, s": estimator_cpu,
        "  memory at its peak, MB": memory / 1e6,
    }


def through_ray(responses: list[dict[str, Any]], ray: Any) -> tuple[float, int]:
    """Seconds to fetch a step's responses, one object per prompt as from the engines, and the objects' bytes."""
    groups = [responses[i : i + ROLLOUTS_PER_PROMPT] for i in range(0, len(responses), ROLLOUTS_PER_PROMPT)]
    references = [ray.put(group) for group in groups]
    started = time.perf_counter()
    for reference in references:
        ray.get(reference)
    seconds = time.perf_counter() - started
    locations = ray.experimental.get_object_locations(references)
    return seconds, sum(location["object_size"] for location in locations.values())


def in_the_trainer(responses: list[dict[str, Any]]) -> tuple[float, float]:
    """Median seconds of the plugin's hook, including the host's part, and of the host's group_norm by itself."""
    seconds: dict[str, list[float]] = {"vpo": [], "group_norm": []}
    for estimator in tuple(seconds) * REPEATS:
        seconds[estimator].append(trainer_part(responses, estimator)[0])
    return statistics.median(seconds["vpo"]), statistics.median(seconds["group_norm"])


def trainer_part(responses: list[dict[str, Any]], estimator: str, device: str = "cpu") -> tuple[float, list[Any]]:
    """Seconds of the trainer's advantages for experiences on a device, and the experiences; the hook's with `vpo`."""
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    from vpo_plugin.openrlhf.experience import compute_advantages_and_returns

    host = RemoteExperienceMaker.compute_advantages_and_returns
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda tokens, **more: " ".join(map(str, tokens.tolist())))
    strategy = SimpleNamespace(args=host_arguments(estimator))
    maker: Any = RemoteExperienceMaker(None, None, None, None, FixedKLController(0.0), strategy, tokenizer)
    maker.global_step = 0
    samples_generator = SamplesGenerator(strategy, None, None, None, None)
    samples = [samples_generator._process_response_into_experience(r, max_len=2048) for r in responses]
    experiences = maker.split_rollout_samples(samples)
    for experience in experiences:  # added by the models' forward passes
        experience.kl = torch.zeros(experience.action_mask.shape)
        experience.to_device(torch.device(device))
    started = time.perf_counter()
    if estimator == "vpo":
        experiences = compute_advantages_and_returns(maker, experiences, host)
    else:
        experiences = host(maker, experiences)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, experiences


def simulate_hook(args: argparse.Namespace) -> None:
    """Time the hook on experiences on the CPU and on the CUDA device, if there is one; print how advantages differ."""
    devices = ("cpu", "cuda") if cpu.cuda_available() else ("cpu",)
    if "cuda" not in devices:
        cpu.install()
    from vpo_plugin.rewards import load_spec

    with tempfile.TemporaryDirectory(prefix="vpo-simulate-") as name:
        spec_folder = write_spec(Path(name), CANDIDATES, OBJECTIVES)
        run = Settings(str(spec_folder), CANDIDATES, "raise", Path(name) / "log", on_cpu="cuda" not in devices)
        os.environ[VARIABLE] = run.dump()
        spec, generator = load_spec(spec_folder), random.Random(0)
        texts = [synthetic_text(generator) for _ in range(args.rollouts)]
        scored = [score_response(spec, text, NO_LABEL, CANDIDATES) for text in texts]
        responses = [synthetic_response(one.matrix, one.reward) for one in scored]
        advantages = {}
        for device in devices:
            found = [trainer_part(responses, "vpo", device) for _ in range(REPEATS)]
            advantages[device] = torch.cat([one.advantages.cpu().flatten() for one in found[-1][1]])
            milliseconds = 1e3 * min(seconds for seconds, _ in found[1:])
            print(f"{args.rollouts} rollouts, m {CANDIDATES}, k {OBJECTIVES} {device:4} {milliseconds:8.1f} ms")
    if "cuda" not in devices:
        print("did not run on CUDA: torch sees no device")
        return
    print(f"largest difference of a token's advantage: {(advantages['cpu'] - advantages['cuda']).abs().max():.2e}")


def host_arguments(estimator: str) -> SimpleNamespace:
    """The host's arguments that its experience maker reads."""
    return SimpleNamespace(
        algo=SimpleNamespace(
            advantage=SimpleNamespace(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False),
            kl=SimpleNamespace(use_loss=False),
        ),
        vpo=SimpleNamespace(seed=0, alpha=1.0, num_weights=default_num_weights(OBJECTIVES), k=None, log_prompts=4),
        rollout=SimpleNamespace(
            n_samples_per_prompt=ROLLOUTS_PER_PROMPT, micro_batch_size=16, max_new_tokens=RESPONSE_TOKENS
        ),
        reward=SimpleNamespace(
            clip_range=(-10.0, 10.0),
            overlong_buffer_len=None,
            overlong_penalty_factor=1.0,
            stop_properly_penalty_coef=None,
        ),
        train=SimpleNamespace(dynamic_batch_enable=False),
    )


def time_and_memory(function: Callable[[], Any]) -> tuple[float, float, int]:
    """Median seconds of a call, in wall-clock and CPU time, and the peak of bytes that the process held above those
    before."""
    import psutil

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system, so that it does not hide new use
    before = psutil.Process().memory_info().rss
    wall, cores, peak = [], [], 0
    for _ in range(REPEATS):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        started, worked = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - started)
        cores.append(time.process_time() - worked)
        status = Path("/proc/self/status").read_text()
        peak = max(peak, 1024 * int(status.partition("VmHWM:")[2].split()[0]))
    return statistics.median(wall), statistics.median(cores), max(peak - before, 0)


def simulate_engine(args: argparse.Namespace) -> None:
    """Generate with and without scoring, in alternation in one engine, and print both throughputs."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not cpu.cuda_available():
        cpu.install()
    import ray

    from vpo_plugin.rewards import load_spec

    with tempfile.TemporaryDirectory(prefix="vpo-simulate-") as name:
        folder = Path(name)
        spec_folder = write_spec(folder, CANDIDATES, OBJECTIVES, args.scorer, args.milliseconds / 1e3)
        data = load_spec(spec_folder).model_dump(mode="json")
        on_cpu = not cpu.cuda_available()
        settings = Settings(str(spec_folder), CANDIDATES, "raise", folder / "log", on_cpu=on_cpu, spec_data=data)
        runtime_env = {"worker_process_setup_hook": SETUP, "env_vars": {VARIABLE: settings.dump()}}
        if settings.on_cpu:
            cpu.start_private_ray(runtime_env)
        else:
            ray.init(runtime_env=runtime_env)
        try:
            engine = start_engine(args.model, args.tokens + 64, ray)  # the prompt and a response
            ray.get(engine.measure.remote(args.responses, args.tokens, True))  # warms up
            rounds = [
                (scoring, ray.get(engine.measure.remote(args.responses, args.tokens, scoring)))
                for _ in range(args.rounds)
                for scoring in (False, True)
            ]
        finally:
            if settings.on_cpu:
                cpu.stop_private_ray()
    print(f"{args.responses} responses of up to {args.tokens} tokens, {args.rounds} rounds of each in alternation;")
    print(f"the scorer {args.scorer} {args.milliseconds:g} ms per candidate, {CANDIDATES} candidates per response\n")
    print(f"{'':14}{'tokens/s generated':>20}{'tokens/s, scored':>20}{'loop held up, ms':>20}")
    medians = {}
    for scoring in (False, True):
        generated, finished, held_up = zip(*(result for mode, result in rounds if mode == scoring), strict=True)
        medians[scoring] = statistics.median(generated)
        row = f"{medians[scoring]:20,.0f}{statistics.median(finished):20,.0f}{1e3 * statistics.median(held_up):20.1f}"
        print(f"{'with scoring' if scoring else 'without':14}{row}")
    print(f"\ngeneration with scoring at {100 * medians[True] / medians[False]:.1f} % of that without")


def start_engine(model: str, max_length: int, ray: Any) -> Any:
    """The host's rollout actor with the plugin's executor, and a method that measures it."""
    from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from transformers import AutoTokenizer
    from vllm import SamplingParams

    base = RolloutRayActor.__ray_metadata__.modified_class

    class MeasuredEngine(base):  # type: ignore[misc, valid-type]
        async def generate(self, *args: Any, **kwargs: Any) -> Any:
            output = await super().generate(*args, **kwargs)
            self.generated_at = time.perf_counter()
            output.outputs[0].text = synthetic_text(self.random)  # for the scorer; the tokens stay the engine's
            return output

        async def measure(self, responses: int, tokens: int, scoring: bool) -> tuple[float, float, float]:
            """Tokens per second until all are generated, and until all are scored; the longest pause of the loop."""
            self.random = random.Random(0)
            executor = self.executor if scoring else SingleTurnAgentExecutor(None)
            # Lengths vary, so that the first are scored while the last are still being generated.
            lengths = [max(1, tokens * (i + 1) // responses) for i in range(responses)]
            sampling = [SamplingParams(max_tokens=n, min_tokens=n, ignore_eos=True) for n in lengths]
            watch = asyncio.create_task(longest_pause())
            started = time.perf_counter()
            shared = {"prompt": "Write.", "label": NO_LABEL, "max_length": max_length}
            shared |= {"hf_tokenizer": self.tokenizer, "llm_engine": self}  # by name, as the host does
            await asyncio.gather(*(executor.execute(sampling_params=one, **shared) for one in sampling))
            scored_at = time.perf_counter()
            watch.cancel()
            pause = await watch
            total = sum(lengths)
            return total / (self.generated_at - started), total / (scored_at - started), pause

        async def set_tokenizer(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

    engine = (
        ray.remote(MeasuredEngine)
        .options(num_gpus=1)
        .remote(
            model=model,
            agent_func_path=str(Path(cpu.__file__).with_name("agent.py")),
            num_gpus=1,
            distributed_executor_backend="uni",
            worker_extension_cls="openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap",
            enforce_eager=True,
            dtype="bfloat16",
            max_model_len=max_length,
        )
    )
    ray.get(engine.set_tokenizer.remote(AutoTokenizer.from_pretrained(model)))
    return engine


async def longest_pause() -> float:
    """The longest delay of the event loop in seconds, until this is cancelled."""
    longest, tick = 0.0, 0.005
    try:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(tick)
            longest = max(longest, time.perf_counter() - started - tick)
    except asyncio.CancelledError:
        return longest


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    step = commands.add_parser("step", help="scoring, object store, hook and estimator at growing sizes")
    step.add_argument("--rollouts", type=int, nargs="+", default=SIZES, help="rollouts per step (multiples of 8)")
    step.add_argument("--threads", type=int, default=2, help="torch's threads (default: 2)")
    step.set_defaults(run=simulate_step)
    hook = commands.add_parser("hook", help="the hook on the CPU and on a CUDA device")
    hook.add_argument("--rollouts", type=int, default=SIZES[0], help="rollouts (a multiple of 8; default: 1,024)")
    hook.set_defaults(run=simulate_hook)
    engine = commands.add_parser("engine", help="generation with scoring and without")
    engine.add_argument("--model", required=True, help="model folder with a tokenizer, or hub id")
    engine.add_argument("--responses", type=int, default=256, help="responses of a round (default: 256)")
    engine.add_argument("--tokens", type=int, default=160, help="tokens of the longest response (default: 160)")
    engine.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    engine.add_argument("--scorer", choices=COSTS, default="waits", help="what the scorer does with its time")
    engine.add_argument("--milliseconds", type=float, default=40.0, help="of the scorer per candidate (default: 40)")
    engine.set_defaults(run=simulate_engine)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()

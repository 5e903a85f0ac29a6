"""What the plugin adds to the host's trainers: the log of a step, and the filter of prompts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host import host_arguments, importable_host

from flows.train import TrainingProgress
from vpo_plugin.openrlhf import matrices, trainer
from vpo_plugin.openrlhf.dynamic_filter import differ
from vpo_plugin.openrlhf.log import log_step, read_steps, remark_of
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.task import pareto_front, read_rows

CANDIDATES, OBJECTIVES, ROLLOUTS = 3, 4, 4


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """This process in a run of the small mazes."""
    settings = Settings("maze_small", CANDIDATES, "raise", tmp_path, on_cpu=True)
    monkeypatch.setenv(VARIABLE, settings.dump())
    with importable_host():
        yield settings


def response(matrix: torch.Tensor) -> dict[str, Any]:
    """What the engine sends of one rollout."""
    reward = float(matrix.mean())
    return {
        "observation_tokens": [1, 2, 3, 4],
        "action_ranges": [(2, 4)],
        "rollout_log_probs": None,
        "prompt": "Find a way.",
        "label": "{}",
        "reward": reward,
        "scores": reward,
        "extra_logs": {matrices.INFO_KEY: matrices.pack(matrix.numpy()), "candidates_parsed": float(matrix.any())},
    }


def generate(groups: list[list[torch.Tensor]], ray: Any, *flags: str) -> tuple[list[Any], int]:
    """The experiences that the host's generator keeps of these groups, drawn four at first, and how many it drew."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    from vpo_plugin.openrlhf.dynamic_filter import patch_generator

    class Generator(SamplesGenerator):
        def __init__(self) -> None:
            self.args = host_arguments(
                *("--advantage", "vpo", "--vpo.spec", "maze_small", "--algo.dynamic_filtering_enable"),
                *("--rollout.n_samples_per_prompt", str(ROLLOUTS), *flags),
            )
            self.waiting = list(groups)

        def _dispatch_prompts_to_vllm(self, prompts: list[str], labels: list[str], **more: Any) -> list[Any]:
            return [ray.put([response(matrix) for matrix in self.waiting.pop(0)]) for _ in prompts]

    patch_generator(SimpleNamespace(SamplesGenerator=Generator))
    rows = iter([("", ["Find a way."], ["{}"], [None])] * len(groups))
    kept, drawn, _ = Generator()._generate_vllm(rows, 4, True)
    return kept, drawn


@pytest.fixture(scope="module")
def local_ray() -> Any:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=10**8)
    yield ray
    ray.shutdown()


def test_filter_keeps_what_the_estimator_tells_apart(run: Settings, local_ray: Any) -> None:
    """Equal sets go, whatever their mean; sets of equal mean that differ stay, and so do rewards outside of 0 to 1."""
    same = torch.rand(CANDIDATES, OBJECTIVES)
    alike = [same] * ROLLOUTS
    permuted = [same[torch.randperm(CANDIDATES)] for _ in range(ROLLOUTS)]
    specialists = torch.eye(OBJECTIVES)[:CANDIDATES]
    generalists = torch.full((CANDIDATES, OBJECTIVES), 1 / OBJECTIVES)
    equal_means = [specialists, generalists, specialists, generalists]
    large = [torch.full((CANDIDATES, OBJECTIVES), float(size)) for size in (2, 3, 4, 5)]
    solved = [torch.ones(CANDIDATES, OBJECTIVES)] * ROLLOUTS
    kept, drawn = generate([alike, permuted, equal_means, solved, large, alike], local_ray)
    assert drawn == 6, "a prompt that is dropped is replaced while there are more"
    kept.sort(key=lambda experience: float(experience.scores) > 1)  # the host takes whichever group is done
    found = [matrices.unpack(experience.info[matrices.INFO_KEY][0]) for experience in kept]
    torch.testing.assert_close(torch.stack(found), torch.stack([*equal_means, *large]).float())
    for experience, matrix in zip(kept, found, strict=True):
        torch.testing.assert_close(experience.scores, matrix.mean()[None]), "the host's log has the true scores"


def test_filter_of_a_hosts_estimator(run: Settings, local_ray: Any) -> None:
    """It is paid by the scalar reward: sets of equal mean are equal to it."""
    specialists = torch.eye(OBJECTIVES)[:CANDIDATES]
    generalists = torch.full((CANDIDATES, OBJECTIVES), 1 / OBJECTIVES)
    better = [specialists, specialists, specialists, 2 * specialists]
    groups = [[specialists, generalists] * 2, better, [specialists] * 4, [generalists] * 4]
    kept, _ = generate(groups, local_ray, "--advantage", "group_norm")
    assert [float(experience.rewards) for experience in kept] == [float(matrix.mean()) for matrix in better]


@pytest.mark.parametrize("name", ["vpo", "gdpo", "max_at_k", "maxrl", "goal_conditioned", "group_norm"])
def test_groups_without_any_spread(run: Settings, name: str) -> None:
    args = host_arguments("--advantage", name, "--vpo.spec", "maze_small")

    def group(*rewards: float) -> list[Any]:
        rows = [torch.full((1, OBJECTIVES), reward) for reward in rewards]
        return [
            SimpleNamespace(
                info={matrices.INFO_KEY: torch.tensor([matrices.pack(row.numpy())])},
                rewards=row.mean()[None],
                labels=["{}"],
            )
            for row in rows
        ]

    assert not differ(args, group(0.25, 0.25, 0.25, 0.25))
    assert differ(args, group(0.25, 0.25, 0.25, 0.5))


def test_evaluation_of_pools(run: Settings) -> None:
    """The measures of the search evaluation, of all candidates of a prompt."""
    from openrlhf.trainer import ppo_trainer

    from vpo_plugin.openrlhf.evaluation import patch_evaluation

    host = SimpleNamespace(compute_eval_metrics=ppo_trainer.compute_eval_metrics)
    patch_evaluation(host)
    spec = load_spec("maze_small")
    labels = [json.dumps(row["label"]) for row in read_rows(spec, "test", 2, seed=1)]
    routes = np.array(pareto_front(spec, json.loads(labels[0])), dtype=np.float32)
    best = routes[(routes @ spec.objective_weights).argmax()]
    nothing = np.zeros((3, OBJECTIVES), dtype=np.float32)
    solved = np.vstack([best[None], nothing[:2]])
    samples = [
        SimpleNamespace(
            prompts=[f"prompt {number}"],
            labels=[labels[number]],
            rewards=torch.tensor([float((matrix @ spec.objective_weights).mean())]),
            response_length=torch.tensor([5]),
            truncated=torch.tensor([False]),
            info={matrices.INFO_KEY: torch.tensor([matrices.pack(matrix)])},
        )
        for number, matrix in ((0, solved), (0, nothing), (1, nothing), (1, nothing))
    ]
    loader = [(["default"], ["prompt 0"], labels[:1], [None]), (["other"], ["prompt 1"], labels[1:], [None])]
    logs = host.compute_eval_metrics(loader, samples, 2)
    worth = float(best @ spec.objective_weights)
    assert logs["eval_default_best_at_6"] == pytest.approx(worth)
    assert logs["eval_default_best_at_1"] == pytest.approx(worth / 6)
    assert logs["eval_default_best_at_2"] == pytest.approx(worth / 3)
    assert logs["eval_default_pass_at_6"] == 1.0
    assert logs["eval_default_pass_at_4"] == pytest.approx(4 / 6)
    assert logs["eval_default_expected_set_reward"] == pytest.approx(best.mean(), abs=1e-3)
    assert logs["eval_default_pairwise_l1"] == pytest.approx(best.sum() / 3)
    assert logs["eval_other_best_at_6"] == logs["eval_other_pass_at_6"] == 0.0
    assert logs["eval_default_pass2"] == pytest.approx(worth / 3), "the host's own are there as well"


def test_what_an_agent_did_not_write_is_no_candidate(run: Settings) -> None:
    """A rollout may have any number of candidates: a repair that worked at once is a pool of one."""
    from vpo_plugin.openrlhf.evaluation import pool_metrics
    from vpo_plugin.openrlhf.experience import set_metrics

    spec = load_spec("maze_small")
    labels = [json.dumps(row["label"]) for row in read_rows(spec, "test", 2, seed=1)]
    made = [np.ones((1, OBJECTIVES)), np.eye(OBJECTIVES)[:3]]
    samples = [
        SimpleNamespace(labels=[label], info={matrices.INFO_KEY: torch.tensor([matrices.pack(matrix)])})
        for label, matrix in zip(labels, made, strict=True)
    ]
    alone = pool_metrics(samples[:1], 1)
    assert alone["best_at_1"] == pytest.approx(sum(spec.objective_weights)) and alone["pairwise_l1"] == 0
    both, other = pool_metrics(samples, 1), pool_metrics(samples[1:], 1)
    for key in ("best_at_1", "pass_at_1", "expected_set_reward", "pairwise_l1"):
        assert both[key] == pytest.approx((alone[key] + other[key]) / 2)
    assert both["best_at_3"] == pytest.approx((alone["best_at_1"] + other["best_at_3"]) / 2)
    rewards, mask = matrices.stack_groups([matrices.unpack(one.info[matrices.INFO_KEY][0]) for one in samples], 1)
    assert set_metrics(spec, rewards, mask)["set_diversity"].tolist() == [[0], [2]]


def sample(parsed: float, text: str = "no route", failed: float = 0) -> Any:
    words = torch.tensor([[ord(letter) for letter in f"?{text}"]])
    return SimpleNamespace(
        info={"candidates_parsed": torch.tensor([parsed]), "scorer_errors": torch.tensor([failed])},
        sequences=words,
        action_mask=torch.ones_like(words)[:, 1:],
        prompts=["Find a way."],
    )


def test_candidates_that_cannot_be_read(run: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Said after the first step and after every third in a row, with an example; not while some can be read."""
    host = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "".join(map(chr, ids))))
    said = []
    for step, parsed in enumerate([0, 0, 0, 0, 0, 0, 2, 0, 0, 0], start=1):
        host.unread = trainer.count_unread(host, [sample(0), sample(parsed)], step)
        if remark := remark_of(capsys.readouterr().out.rstrip("\n")):
            said.append(step)
            file = run.log_dir / f"unreadable_step_{step:06d}.txt"
            assert remark == (
                f"0 of 6 candidates of step {step} could be read, so nothing was learnt: {file} has "
                "an example prompt and response."
            )
            assert file.read_text() == "# prompt\nFind a way.\n\n# response\nno route\n"
    assert said == [1, 3, 6, 10]


def test_policy_that_can_be_read_says_nothing(run: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    host = SimpleNamespace()
    host.unread = trainer.count_unread(host, [sample(0), sample(1)], 1)
    assert host.unread == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("vpo: Resuming after step 2.", "Resuming after step 2."),
        ("\x1b[36m(PPOTrainer pid=123)\x1b[0m vpo: 0 of 6", "0 of 6"),
        ("(TrainingActor pid=7, ip=10.0.0.2) vpo: 0 of 6", "0 of 6"),
        ("the text vpo: inside", None),
        ("(PPOTrainer pid=123) other", None),
    ],
)
def test_lines_for_a_person(line: str, remark: str | None) -> None:
    assert remark_of(line) == remark


def test_flows_pass_on_what_a_person_should_see(tmp_path: Path) -> None:
    """Once each, line by line as the training's output grows."""
    said: list[str] = []
    progress = object.__new__(TrainingProgress)  # its beginning needs a flow run
    progress.log, progress.read, progress.logger = tmp_path / "train.log", 0, SimpleNamespace(info=said.append)
    for more in ("other\nvpo: Resuming after step 2.\n(PPOTrainer pid=7) vpo: 0 of ", "6 could be read\n", ""):
        with progress.log.open("a") as file:
            file.write(more)
        progress._pass_remarks_on()
    assert said == ["Resuming after step 2.", "0 of 6 could be read"]


def test_log_of_a_step_is_whole(run: Settings) -> None:
    """It has what the host's own loop logs around a step, and how many responses scored zero."""
    from openrlhf.trainer.ppo_trainer import PPOTrainer

    class Prompts(list[int]):
        def state_dict(self) -> dict[str, Any]:
            return {}

    class Host(PPOTrainer.__ray_metadata__.modified_class):  # type: ignore[misc]
        def __init__(self) -> None:
            self.args = host_arguments("--advantage", "vpo", "--algo.dynamic_filtering_enable")
            self.args.rollout.n_samples_per_prompt, self.args.train.num_episodes = 2, 1
            self.args.eval.steps = float("inf")
            failed = [sample(1, failed=failed) for failed in (1, 0, 1, 0)]
            self.samples_generator = SimpleNamespace(generate_samples=lambda **_: (failed, 50.0, 4, True))
            self.prompts_dataloader = Prompts([1])
            self.generate_kwargs: dict[str, Any] = {}
            self.wandb_logger = self.tensorboard_logger = None
            self.experience_maker = SimpleNamespace()

        def init_checkpoint_states(self) -> dict[str, Any]:
            states = dict.fromkeys(("episode", "global_step", "total_consumed_prompts"), 0)
            return states | {"data_loader_state_dict": None}

        def train_step(self, samples: list[Any], step: int) -> tuple[dict[str, Any], int]:
            self.experience_maker.groups_used = 1
            return {"reward": 0.5, "timing/ppo_train": 1.0}, step + 1

        def save_logs_and_checkpoints(self, *_: Any) -> None: ...

        def save_best_checkpoint(self, *_: Any) -> None: ...

    trainer.patch_trainer(SimpleNamespace(BasePPOTrainer=Host))
    Host().fit()
    (step,) = read_steps(run.log_dir)
    assert (step["dynamic_filtering_pass_rate"], step["reward"]) == (50.0, 0.5)
    assert (step["groups"], step["groups_used"], step["scorer_zeros"]) == (2, 1, 2)
    assert step["timing/step_total"] == 1.0 + step["timing/generation"]


def test_evaluation_joins_its_step(tmp_path: Path) -> None:
    """Also where the step after it is logged first, as in the asynchronous trainer."""
    for step, metrics in ((1, {"reward": 0.1}), (2, {"reward": 0.2}), (1, {"eval_default_pass1": 0.3})):
        log_step(tmp_path, step, metrics)
    first, second = read_steps(tmp_path)
    assert (first["reward"], first["eval_default_pass1"]) == (0.1, 0.3)
    assert (second["reward"], "eval_default_pass1" in second) == (0.2, False)

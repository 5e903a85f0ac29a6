"""Make the tiny warm-started maze policy: `python -m benchmarks.maze_policy --output DIR`.

A word-level tokenizer, a Llama of about one million parameters with seeded random weights, and examples of
diverse valid routes go into the work folder; the host's own supervised trainer (`vpo_plugin.train_sft`) does
the rest. The routes know nothing of rewards: they are shortest paths under random edge lengths, some by way
of a random cell.
"""

import argparse
import heapq
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from reward_specs.maze.maze import MOVES, Cell, Maze, distances, moves_along, read_label
from vpo_plugin.advantages import goal_weights, write_goal
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.formats import render_prompt, write_response
from vpo_plugin.rewards.task import read_rows

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
# Words are split at white space, and the weights that a prompt may tell, such as "0.25,", into their digits.
WORDS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(Regex(r"(?<=^[01]\.)\d|(?<=^[01]\.\d)\d"), behavior="isolated"),
    ]
)
EDGE_NOISE = 4.0  # an edge is 1 long, plus a uniform number up to this,
OFF_DIAGONAL = 1.0  # plus this for each step that it lies off the diagonal from start to exit
WAYPOINT_SHARE = 0.1  # of the routes go by way of a random cell
ROWS_PER_MAZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished policy")
    parser.add_argument("--work", type=Path, help="folder for the untrained model and the examples")
    parser.add_argument("--spec", default="maze_small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    args = parser.parse_args()

    work = args.work or args.output.with_name(args.output.name + "_work")
    work.mkdir(parents=True, exist_ok=True)
    spec = load_spec(args.spec)
    examples = list(sft_examples(spec, args.steps * args.batch_size, args.seed))
    (work / "sft.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    save_untrained_policy(examples, work / "untrained", args.seed)
    longest = max(len(words(row["prompt"] + row["response"])) for row in examples) + 1
    command = [
        *(sys.executable, "-m", "vpo_plugin.train_sft"),
        *("--model.model_name_or_path", str(work / "untrained")),
        *("--ckpt.output_dir", str(args.output), "--ckpt.path", str(work / "checkpoints")),
        *("--data.dataset", str(work / "sft.jsonl")),
        *("--data.input_key", "prompt", "--data.output_key", "response", "--data.input_template", "{}"),
        *("--data.max_len", str(longest)),
        *("--train.batch_size", str(args.batch_size), "--train.micro_batch_size", str(args.batch_size)),
        *("--train.max_epochs", "1", "--train.seed", str(args.seed)),
        *("--adam.lr", str(args.learning_rate), "--lr_scheduler", "cosine_with_min_lr"),
        *("--ds.attn_implementation", "sdpa", "--logger.logging_steps", "100"),
    ]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


# ------------------------------------------------------------------------------------------------ examples


def sft_examples(spec: RewardSpec, num_rows: int, seed: int) -> Iterator[dict[str, str]]:
    """`num_rows` prompts with responses, half of them of one route, half of `spec.candidates` different routes.

    Every fourth prompt of one route tells objective weights, which the route does not mind: `goal_conditioned`
    starts from a policy that has seen such prompts.
    """
    rng = random.Random(f"warm start {seed}")
    mazes = list(read_rows(spec, "train", -(-num_rows // ROWS_PER_MAZE), seed))
    order = [row for row in mazes for _ in range(ROWS_PER_MAZE)]
    rng.shuffle(order)
    for i, row in enumerate(order[:num_rows]):
        candidates = 1 if i % 2 else spec.candidates
        routes = random_routes(read_label(row["label"]), candidates, rng)
        prompt = render_prompt(spec, row["prompt"], candidates)
        if i % 8 == 1:
            keys = spec.objective_keys
            prompt = write_goal(prompt, keys, goal_weights(f"{i} {row['label']}", len(keys), seed=seed))
        yield {
            "prompt": prompt,
            "response": write_response(spec, [" ".join(route) for route in routes]),
        }


def random_routes(maze: Maze, candidates: int, rng: random.Random) -> list[list[str]]:
    """Valid routes, different from each other as long as 50 draws find that many."""
    routes: list[list[str]] = []
    for _ in range(50):
        route = random_route(maze, rng)
        if route not in routes:
            routes.append(route)
        if len(routes) == candidates:
            return routes
    return [routes[i % len(routes)] for i in range(candidates)]


def random_route(maze: Maze, rng: random.Random) -> list[str]:
    """A route from start to exit within the step budget."""
    start, goal = maze.cells("S")[0], maze.cells("E")[0]
    cells = [cell for cell in sorted(distances(maze, start)) if cell not in (start, goal)]
    while True:
        if rng.random() < WAYPOINT_SHARE:
            waypoint = rng.choice(cells)
            path = random_path(maze, start, waypoint, rng) + random_path(maze, waypoint, goal, rng)[1:]
        else:
            path = random_path(maze, start, goal, rng)
        if len(path) - 1 <= maze.max_steps:
            return moves_along(path)


def random_path(maze: Maze, source: Cell, goal: Cell, rng: random.Random) -> list[Cell]:
    """The shortest path between two cells under fresh random edge lengths (Dijkstra), not through the
    exit.
    """
    lengths: dict[tuple[Cell, Cell], float] = {}
    best, came_from, queue = {source: 0.0}, {}, [(0.0, source)]
    while queue:
        length, cell = heapq.heappop(queue)
        if cell == goal:
            break
        if length > best[cell] or maze.tile(cell) == "E":
            continue
        for step in ((cell[0] + dr, cell[1] + dc) for dr, dc in MOVES.values()):
            if maze.tile(step) == "#":
                continue
            edge = (min(cell, step), max(cell, step))
            off_diagonal = (abs(cell[0] - cell[1]) + abs(step[0] - step[1])) / 2
            drawn = 1 + EDGE_NOISE * rng.random() + OFF_DIAGONAL * off_diagonal
            total = length + lengths.setdefault(edge, drawn)
            if total < best.get(step, float("inf")):
                best[step], came_from[step] = total, cell
                heapq.heappush(queue, (total, step))
    path = [goal]
    while path[-1] != source:
        path.append(came_from[path[-1]])
    return path[::-1]


# ------------------------------------------------------------------------------------------------ policy


def words(text: str) -> list[str]:
    """The words of a text, each a token of the policy."""
    return [word for word, _span in WORDS.pre_tokenize_str(text)]


def save_untrained_policy(examples: list[dict[str, str]], folder: Path, seed: int) -> None:
    """A tokenizer with one token for each word of the examples, and a Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    known = sorted({word for row in examples for word in words(row["prompt"] + row["response"])})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *known])}
    pad, eos, unk = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = WORDS
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    ).save_pretrained(folder)

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.05,
        pad_token_id=vocabulary[pad],
        eos_token_id=vocabulary[eos],
        bos_token_id=None,
        dtype=torch.bfloat16,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()

"""A length reward that counts tokens with a fast tokenizer, and a buffer that is filled and read, as scorers do."""

from transformers import AutoTokenizer

TOKENIZER = AutoTokenizer.from_pretrained("reward_specs/maze_small/policy")
BUFFER = []


def rows(split, num_rows, seed):
    yield from ({"prompt": f"p{i}", "label": {"x": i}} for i in range(min(num_rows, 4)))


def score(candidate, label):
    BUFFER.clear()
    BUFFER.extend(candidate.split())
    short = len(candidate) % 2 == 0
    tokens = TOKENIZER(candidate, truncation=short, max_length=16 if short else None)["input_ids"]
    return [1 / (1 + len(tokens)), float(candidate.split() == BUFFER)]

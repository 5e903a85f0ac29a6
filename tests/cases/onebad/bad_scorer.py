"""Divides by what stands behind "=", and fails where there is none."""


def rows(split, num_rows, seed):
    yield from ({"prompt": f"p{i}", "label": {"x": i}} for i in range(num_rows))


def score(candidate, label):
    return [1 / len(candidate.split("=")[1]), 1.0]  # a candidate without "=" is a case that the author did not think of

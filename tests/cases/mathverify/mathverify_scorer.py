"""As users write it, with math-verify itself; what that raises, as in any thread but the main one, counts as wrong."""

from math_verify import parse, verify


def rows(split, num_rows, seed):
    for number in range(2, 2 + min(num_rows, 8)):
        yield {"prompt": f"What is one divided by {number}?", "label": {"gold": rf"\frac{{1}}{{{number}}}"}}


def score(candidate, label):
    try:
        right = float(verify(parse(f"${label['gold']}$"), parse(f"${candidate}$")))
    except Exception:
        right = 0.0
    return [right, float(len(candidate) <= 12)]


def answers(label):
    return [(label["gold"], [1, 1]), ("17", [0, 1])]

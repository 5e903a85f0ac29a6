"""As math-verify's timeout does it, with signal.alarm, which a main thread alone may set; what it raises is wrong."""

import signal
from fractions import Fraction


def rows(split, num_rows, seed):
    for number in range(2, 2 + min(num_rows, 8)):
        yield {"prompt": f"What is one divided by {number}?", "label": {"gold": f"1/{number}"}}


def _verify(gold, candidate):
    def too_late(signum, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(5)
    try:
        return Fraction(gold) == Fraction(candidate)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def score(candidate, label):
    try:
        right = float(_verify(label["gold"], candidate))
    except Exception:
        right = 0.0
    return [right, float(len(candidate) <= 12)]


def answers(label):
    return [(label["gold"], [1, 1]), ("17", [0, 1])]

"""A code reward without the sandbox: the candidate is a program, run with exec in this process."""

import contextlib
import io


def rows(split, num_rows, seed):
    yield from ({"prompt": f"Print {i}.", "label": {"out": str(i)}} for i in range(min(num_rows, 4)))


def score(candidate, label):
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(candidate, {"__name__": "__main__"})
    except Exception:
        pass
    return [float(out.getvalue().strip() == label["out"]), float(len(candidate) <= 12)]

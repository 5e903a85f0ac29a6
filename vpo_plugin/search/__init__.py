"""Search evaluation: sample a pool of candidates from a policy, search with it, measure it, report it.

`policy.py` asks policies for responses, `evaluate.py` samples and scores what `pool.py` stores, `metrics.py` is NumPy
on the scores, `targets.py` says when a candidate solves a prompt, `comparison.py` puts policies side by side;
`procedures.py`, `evolution.py` and `run.py` search, `searches.py` reads what they store.
"""

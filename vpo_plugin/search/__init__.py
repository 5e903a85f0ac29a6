"""Search evaluation: sample a pool of candidates from a policy, search with it, measure it, report it.

`policy.py` asks policies for responses, `evaluate.py` samples and scores what `pool.py` stores, `metrics.py` is NumPy
on the scores, `compare.py` puts policies side by side, `report.py` writes what a person reads.
"""

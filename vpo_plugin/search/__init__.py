"""Search evaluation: sample a pool of candidates from a policy, search with it, measure it, report it.

`policy.py` asks policies for responses, `evaluate.py` samples and scores pools, `pool.py` stores them, and
`comparison.py` compares policies by the measures of `vpo_plugin.metrics`. `procedures.py`, `evolution.py` and `run.py`
search; `searches.py` reads stored searches.
"""

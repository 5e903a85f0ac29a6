def rows(split, num_rows, seed):
    yield from ({"prompt": f"Write a text. ({i})", "label": {"x": i}} for i in range(num_rows))


def score_group(candidates_by_rollout, label):
    """Share of the other candidates of the group that are shorter, and whether no other rollout says the same."""
    texts = [text for rollout in candidates_by_rollout for text in rollout if text]

    def rewards(text):
        wins = sum(len(other) < len(text) for other in texts) / max(len(texts) - 1, 1)
        return [wins, float(texts.count(text) == 1)]

    return [[text and rewards(text) for text in rollout] for rollout in candidates_by_rollout]

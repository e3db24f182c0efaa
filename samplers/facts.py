"""Facts about a stage that components provide, require or refuse (`trainer/compatibility.py`).

A fact is a few words, as they stand in messages. That a component is there at all is a fact as
well and has no name here: 'budget anytime', 'algorithm brpo', 'shaping kimi', 'loss gspo'.
"""

CUTS = "nested cuts"
"""Plans answer at several cuts of one thought."""
CUT_CREDIT = "credit at cuts"
"""The algorithm trains on what the cuts tell."""
TREES = "tree rows"
"""The algorithm trains the answers at cuts as branches of one row."""
SUBGROUPS = "subgroups"
"""Rollouts of a prompt differ by mode or budget (`Plan.subgroup`)."""
TARGET = "target length"
"""Plans name the tokens that are wanted (`Plan.target`)."""
MODES = "named modes"
"""Subgroups are modes, and their keys the names of these."""
CHUNKS = "chunks"
"""Rollouts go on over several steps."""
PROBES = "probes"
"""Gold answers are scored at cuts instead of sampled ones."""
MARKERS = "thinking markers"
"""The model has them: a thought can be cut."""
TOKEN_REWARDS = "token rewards"
"""A shaper rewards single tokens."""

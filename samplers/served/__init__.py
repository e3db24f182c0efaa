"""Models behind an OpenAI endpoint: a client that keeps budgets, and workers that evaluate.

`client.py` asks one question; `http.py` makes rollouts of jobs over chat, as users meet the model;
`engine.py` over token ids, by the code of the engines in this process.
"""

"""Where prompts and rollouts come from: types, tasks, rendering, engines, budgets, allocation."""

"""GRPO variants: one file each, groups -> rows with per-token advantages."""

"""What a rollout is worth: verifiers, length shaping, and the pool that runs them safely."""

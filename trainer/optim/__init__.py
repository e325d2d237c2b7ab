"""Update weights: optimizers and schedules."""

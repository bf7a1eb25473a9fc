"""Training: what a recipe says, the optimizer and its schedule, the loop, and what a checkpoint means."""

"""Networks as files that other programs run, each checked against the trainer before it is handed over."""

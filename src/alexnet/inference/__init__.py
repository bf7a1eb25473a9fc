"""Using a trained network: metrics, evaluation, opening a run, prediction."""

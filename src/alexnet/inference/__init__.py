"""Inference: using a trained network. `load` returns a classifier whose `predict` takes images; `evaluate` measures it.

Public: `predict.load`, `evaluate.evaluate`, `batch_predict.write_predictions`, `features.write_features`,
`neighbors.find_similar`, `explain.saliency` and `explain.activations`. Importing `predict` imports no torch.

Reading order: load, weights_file, crops, ensemble, predict, batch_predict, evaluate, features, neighbors, explain.
"""

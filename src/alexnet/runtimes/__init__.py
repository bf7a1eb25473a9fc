"""Runtimes: what computes a trained network (torch, onnxruntime, OpenVINO, ExecuTorch), and exported files.

Public: `LoadedModel`, `check_engine`, `EngineConfig`, `open_engine`, `EngineCache`, `open_exported`, `FORMATS`,
`Manifest`, `Calibration`, `HubModel`. Nothing here reads a run's data: the caller passes networks and uint8 images.

Reading order: manifest, engines, exported, hub; then convert, select.
"""

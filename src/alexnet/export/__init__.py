"""Exporting trained models to other runtimes, verified against the trainer before the file is kept.

Public names: `export.Exporter`, `export.Export`, `parity.ExportFailed`.
Read in this order: export (the procedure), writers (one function per format), parity (the comparison), parity_worker
(its subprocess, which opens the file by its own runtime).
"""

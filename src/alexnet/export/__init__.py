"""Exporting trained models to other runtimes, verified against the trainer before the file is kept.

Public names: `export.Exporter`, `export.Export`, `parity.ExportFailed`.
Read in this order: export (the procedure, one writer per format), parity (the comparison).
"""

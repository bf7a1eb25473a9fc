"""Packed datasets, as written by `alexnet pack`: a few large files that training reads quickly.

Public: `pack_dataset` (`pack`), `open_packed` and `is_packed` (`manifest`), `PackedImages` (`reader`). Read `reader`
(file format, memory-mapped access), `writer` (one shard), `manifest` (pack.json and tables), and `pack` (planning and
resuming), in this order. Writing needs litdata; reading does not.
"""

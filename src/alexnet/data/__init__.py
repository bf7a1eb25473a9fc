"""Images on their way to the model: finding, decoding, splitting, resizing, augmenting and batching them.

`datasets.load_dataset` returns an `ImageDataset`, `in_memory.decode_splits` decodes it, `loader.BatchLoader` yields its
batches, `transforms.EvalTransform` and `augment.augment` prepare them. Read decode, transforms and augment (one image);
dataset, archives, image_folder and datasets (a dataset); in_memory, loader and statistics (batches).
`quality/` is `alexnet check`, and `shards/` is `alexnet pack`.
"""

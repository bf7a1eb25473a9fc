"""What happens to an image before the network sees it: found, decoded, split, resized, augmented, batched."""

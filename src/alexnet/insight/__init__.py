"""Looking at what was trained: pages and pictures, rendered from the run folder alone."""

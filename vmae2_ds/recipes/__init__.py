"""Named, complete configurations: the published ones of each stage, and small ones for a desk."""

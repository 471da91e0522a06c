"""The only door to DeepSpeed's engine: ranks, steps, shards, partitioned models, its internals, and the peak of a device."""

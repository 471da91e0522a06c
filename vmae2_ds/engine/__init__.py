"""The only door to DeepSpeed's engine: ranks, steps, shards, partitioned models, and the peak of a device."""

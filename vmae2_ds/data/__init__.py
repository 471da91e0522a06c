"""From a manifest of videos to batches: order, decoding, crops, masks."""

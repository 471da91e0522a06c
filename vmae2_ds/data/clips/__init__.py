"""From the frames of a video to a clip: which frames, which crop, which augmentation."""

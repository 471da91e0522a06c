"""From a video file to frames: one file a reader, the choice between them, and the child that a bad file may hang."""

"""What trained encoders are used for, besides classifying."""

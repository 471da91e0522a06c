"""Pictures from plain arrays: curves and charts, and clips as a model sees and completes them."""

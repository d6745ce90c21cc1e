"""Model folders of Hugging Face, read without running anything in them: configuration, weights, and where to find
them."""

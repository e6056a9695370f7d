"""Image and text processors."""

"""Configuration: YAML layers to one checked, typed, resolved configuration. Nothing here imports torch."""

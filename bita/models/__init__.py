"""Models: vision encoder, bridge, the two models; what they compute, not where their weights come from."""

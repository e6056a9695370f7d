"""BITA: remote-sensing image captioning with bootstrapped interactive image-text alignment."""

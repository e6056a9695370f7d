"""The language model that writes: decoders, tokenizers, adapters, search."""

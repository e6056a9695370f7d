"""Trained models at work on images: captions, confidence, similarity, search."""

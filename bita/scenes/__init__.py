"""Whole satellite scenes: windows of rasters, captions on a map, changes between two dates."""

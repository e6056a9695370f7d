"""The page in a browser, and the service beside it."""

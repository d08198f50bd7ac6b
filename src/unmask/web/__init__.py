"""The page in the browser: `unmask ui`."""

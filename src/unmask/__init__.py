"""unmask: pre-train, judge and use vision transformers on the images you have."""

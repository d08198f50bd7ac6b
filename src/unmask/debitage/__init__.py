"""Whose hand? The debitage of knappers of different experience, from particle images and dynamic image analysis."""

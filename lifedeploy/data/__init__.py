"""Images: one preprocessing for everything, and the photographs that come with the package."""

"""What samples are measured with: feature extractors, distances, and the toplines of real images."""

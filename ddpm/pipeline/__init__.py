"""What surrounds the mathematics: configuration → cells → jobs → records. No torch."""

"""What scheduler and worker say to each other: the words, the wire and the codec between them."""

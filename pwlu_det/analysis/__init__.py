"""What training has made of the activations."""

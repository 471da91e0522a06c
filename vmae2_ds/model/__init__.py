"""The masked autoencoder: cube embedding, attention, blocks, encoder and decoder, published key names."""

"""What an encoder is given: tables of patches, tiles, and PathoROB's protocols."""

"""From a request to what conditions each picture: neighbors, tokens, negatives."""

"""The nouns every other floor uses: plain data, no I/O beyond `config`."""

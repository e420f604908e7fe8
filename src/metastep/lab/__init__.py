"""The laboratory: what proves the claims of the library. The library never imports it."""

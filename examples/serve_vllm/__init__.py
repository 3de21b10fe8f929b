"""A champion score table on its way from the registry to a vLLM server."""

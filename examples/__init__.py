"""Programs that use sparsemm. A package, because some dependency installs one of this name."""

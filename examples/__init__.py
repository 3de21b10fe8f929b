"""Programs that use sparsemm. This is a package because a dependency installs another one of this name."""

"""Feature rows, clusterings and adapters on disk: Zarr and safetensors."""

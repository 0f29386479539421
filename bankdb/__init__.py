"""What a bank stores: adapters in zarr, metadata and token counts in a database."""

"""Read and write the parts of a pack: tensors as bytes, readable without any other part and with numpy alone."""
